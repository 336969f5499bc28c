"""Every reader of files that may come from elsewhere, on files that were spoiled: `python -m tests.fuzz`.

`readers` lists the readers with good files that the product itself makes, and small bad ones. `mutate` spoils a file by
what it is: members of archives, fields of JSON, of protocol buffers and of headers, and at last bytes. `runner` has
children with little time and memory read what comes of it. Input number N of a reader is the same whenever the seed is.
"""
