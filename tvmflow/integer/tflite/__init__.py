"""Quantised `.tflite` files as networks of our integer operators, with the arithmetic of TensorFlow Lite for
Microcontrollers bit for bit.

`tables` reads the file, `model` what is in it, `fixed_point` has the arithmetic, `values` the tensors while they are
read, `weighted` and `plain` what operators with and without weights become, and `reader` puts them together.
"""
