"""Quantised `.tflite` files as networks of our integer operators, with the arithmetic of TensorFlow Lite for
Microcontrollers bit for bit.

`tables` reads the file, `model` what is in it; `fixed_point` has the arithmetic, `values` the tensors while they are
read. What operators become is in `weighted`, `pools`, `plain`, `functions`, `resizing`, `moves` and `state`, and
`reader` puts it together.
"""
