"""Files of networks that others quantised, whose graphs say it by QuantizeLinear and DequantizeLinear.

`values` has the tensors of such a file while it is read: integers, and the real numbers between the two operators.
What computes these is in `cores`, and `operations` makes one of another; both know no format. `tidy` makes fewer layers
of the same integers. `onnx_graph`, `onnx_operators` and `onnx_reader` read ONNX.
"""
