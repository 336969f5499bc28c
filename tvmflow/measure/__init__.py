"""Running a compiled network: on this computer (`local`), each in its own process (`worker`)."""
