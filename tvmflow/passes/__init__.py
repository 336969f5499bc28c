"""One graph pass a file. A stage takes a Program and a Target and returns a new Program; `pipeline.py` orders them."""
