"""ONNX operators as Relax: each file has one family of them, and `OPERATORS` of `onnx_operators` lists them all."""
