"""Float networks in `.tflite` files. The file itself is read by `tvmflow.integer.tflite.model`, as quantised ones are.

- `graph.py`: the operators as both of the following see them, and the constants in float32.
- `walk.py` and `operators.py`: the graph becomes Relax, with the channels of maps first.
- `reference.py`: the same in PyTorch, with the channels last as in the file, which builds are held against.
"""
