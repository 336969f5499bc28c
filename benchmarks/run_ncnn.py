"""Runs one of ncnn's networks as its benchncnn does, between the marks of tvmflow/measure/trace_memory.c.

`python run_ncnn.py PARAM SHAPE` is meant for the ARM system's Python, which has no more than the wheels of ncnn and
NumPy: SHAPE is width, height and channels. Weights are zero and the input is 0.01, as in benchmark/benchncnn.cpp of
ncnn, whose options these are. Nothing is timed.
"""

import contextlib
import os
import sys

import ncnn
import numpy as np

MARK = 0x7A1100
SIMULATE, COUNT, END = 1, 2, 3
OPTIONS = (
    "lightmode",
    "use_winograd_convolution",
    "use_sgemm_convolution",
    "use_int8_inference",
    "use_fp16_packed",
    "use_fp16_storage",
    "use_fp16_arithmetic",
    "use_int8_storage",
    "use_int8_arithmetic",
    "use_packing_layout",
)


def main() -> None:
    width, height, channels = map(int, sys.argv[2].split(","))
    ncnn.set_omp_dynamic(0)
    ncnn.set_omp_num_threads(1)
    net = ncnn.Net()
    net.opt.num_threads = 1
    for option in OPTIONS:
        setattr(net.opt, option, True)
    net.opt.use_vulkan_compute = False
    blobs, workspace = ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator()
    for allocator in (blobs, workspace):
        allocator.set_size_compare_ratio(0.0)
    net.opt.blob_allocator, net.opt.workspace_allocator = blobs, workspace
    if net.load_param(sys.argv[1]) != 0:
        sys.exit("ncnn can't read the network")
    net.load_model(ncnn.DataReaderFromEmpty())
    pixels = np.full((channels, height, width), 0.01, np.float32)  # the Mat does not keep it
    image = ncnn.Mat(pixels)
    for mark in (SIMULATE, COUNT):
        signal(mark)
        infer(net, image)
    signal(END)


def infer(net: ncnn.Net, image: ncnn.Mat) -> None:
    extractor = net.create_extractor()
    for name in net.input_names():
        extractor.input(name, image)
    for name in net.output_names():
        extractor.extract(name)


def signal(mark: int) -> None:
    """The plugin sees the call; that there is no such process doesn't matter."""
    with contextlib.suppress(ProcessLookupError):
        os.getpgid(MARK + mark)


if __name__ == "__main__":
    main()
