"""The stand-in runs CUDA C right, and what a GPU would refuse or leave undefined is a sentence."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tvmflow.spec import MissingDependencyError, VerificationError
from tvmflow.targets.cuda import standin
from tvmflow.targets.cuda.nvrtc import CompileError


def launch(source: str, *arrays: np.ndarray, grid=(1, 1, 1), block=(64, 1, 1), dynamic=0) -> str:
    """Run the one kernel of a source on arrays and numbers. "" or what went wrong."""
    kernels = ctypes.CDLL(str(standin.compile_kernels(source)))
    values = [array.ctypes.data_as(ctypes.c_void_p) if isinstance(array, np.ndarray) else array for array in arrays]
    given = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    error = ctypes.create_string_buffer(512)
    code = kernels.standin_launch_k((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), dynamic, given, error, 512)
    assert (code == 0) is (error.value == b"")
    return error.value.decode()


def kernel(body: str, parameters: str = "float* __restrict__ a, float* __restrict__ b", threads: int = 64) -> str:
    return f'extern "C" __global__ void __launch_bounds__({threads}) k({parameters}) {{\n{body}\n}}\n'


REVERSE = kernel("""  __shared__ alignas(64) float s[64];
  s[threadIdx.x] = a[blockIdx.x * 64 + threadIdx.x];
  __syncthreads();
  b[blockIdx.x * 64 + threadIdx.x] = s[63 - threadIdx.x];""")


def arrays(count: int = 128) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(count, dtype=np.float32), np.zeros(count, np.float32)


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_barriers(monkeypatch, order):
    monkeypatch.setenv("TVMFLOW_STANDIN_ORDER", order)
    a, b = arrays()
    assert launch(REVERSE, a, b, grid=(2, 1, 1)) == ""
    np.testing.assert_array_equal(b, np.concatenate([a[63::-1], a[:63:-1]]))


def test_missing_barrier_shows():
    """What no thread has written yet is no number."""
    a, b = arrays()
    assert launch(REVERSE.replace("  __syncthreads();\n", ""), a, b, grid=(2, 1, 1)) == ""
    assert np.isnan(b).any()


def test_warp_operations():
    a, b = arrays()
    source = kernel("""  float v = a[threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_down_sync(0xffffffff, v, offset, 32);
  float first = __shfl_sync(__activemask(), v, 0, 32);
  b[threadIdx.x] = first + (__any_sync(0xffffffff, threadIdx.x == 40) ? 0.5f : 0.0f);""")
    assert launch(source, a, b) == ""
    np.testing.assert_array_equal(b[:64], np.repeat([sum(range(32)), sum(range(32, 64)) + 0.5], 32))


def test_float16_rounds_once():
    a, b = np.full(64, 2049, np.float16), np.zeros(64, np.float16)
    body = "  b[threadIdx.x] = __hfma(a[threadIdx.x], __float2half(1.0f), __float2half(3.0f)) * __half(0.1f);"
    source = "#include <cuda_fp16.h>\n" + kernel(body, "half* a, half* b")
    assert launch(source, a, b) == ""
    np.testing.assert_array_equal(b, (a + np.float16(3)) * np.float16(0.1))


def test_dynamic_shared_memory():
    a, b = arrays()
    body = """  extern __shared__ __align__(1024) unsigned char pool[];
  ((float*)pool)[threadIdx.x] = a[threadIdx.x];
  __syncthreads();
  b[threadIdx.x] = ((float*)pool)[63 - threadIdx.x];"""
    assert launch(kernel(body), a, b, dynamic=256) == ""
    np.testing.assert_array_equal(b[:64], a[63::-1])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("  if (threadIdx.x < 32) __syncthreads();", "waits at a barrier, where 32 threads have ended"),
        ("  if (threadIdx.x < 32)\n    __syncthreads();\n  else\n    __syncthreads();", "line 3, where another waits"),
        ("  if (threadIdx.x != 5) __syncwarp();", "line 2: lane 5 doesn't meet the others"),
        (
            "  __shared__ float s[64]; s[threadIdx.x + 1] = a[0]; __syncthreads(); b[0] = s[0];",
            "thread (63,0,0): line 2: index 64 is outside its array",
        ),
        ("  float mine[4]; mine[0] = 0; b[0] = mine[(int)a[1] - 2];", "index -1 is outside its array"),
        ("  *(float4*)(b + 1) = make_float4(0, 0, 0, 0);", "line 2: a vector is read or written at"),
        ("  float2 v = *(float2*)(a + 1); b[0] = v.x;", "line 2: a vector is read or written at"),
        ("  b[(long)a[1] << 40] = 0;", "memory is touched where none is"),
    ],
)
def test_refused(body, words):
    assert words in launch(kernel(body), *arrays())


def test_what_cannot_run():
    with pytest.raises(CompileError, match=r"The stand-in for CUDA can't run these kernels: .*nonsense"):
        standin.compile_kernels(kernel("  nonsense();"))


def _watched(body: str) -> list[float]:
    """By `standin.call`: what a kernel makes of 0 … 63, in device memory of just that size."""
    cudart = ctypes.CDLL("libcudart.so.13")
    a, b = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    given = [ctypes.c_void_p() for _ in range(2)]
    for place, array in zip(given, (a, b), strict=True):
        assert cudart.cudaMalloc(ctypes.byref(place), ctypes.c_size_t(array.nbytes)) == 0
        cudart.cudaMemcpyAsync(place, array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(array.nbytes), 1, None)
    kernels = ctypes.CDLL(str(standin.compile_kernels(kernel(body), sanitized=True)))
    arguments = (ctypes.c_void_p * 2)(*(ctypes.addressof(place) for place in given))
    error = ctypes.create_string_buffer(512)
    code = kernels.standin_launch_k(
        (ctypes.c_uint * 3)(1, 1, 1), (ctypes.c_uint * 3)(64, 1, 1), 0, arguments, error, 512
    )
    assert code == 0, error.value
    cudart.cudaMemcpyAsync(b.ctypes.data_as(ctypes.c_void_p), given[1], ctypes.c_size_t(b.nbytes), 2, None)
    return b.tolist()


STAGED = """  __shared__ alignas(16) float s[64]; float mine[4];
  s[threadIdx.x] = a[threadIdx.x];
  for (int i = 0; i < 4; i++) mine[i] = threadIdx.x;
  __syncthreads();
  float4 v = ((float4*)s)[15 - threadIdx.x / 4];
  b[threadIdx.x] = v.x + ((float2*)mine)[threadIdx.x % 4 / 2].x;"""


@pytest.fixture(scope="module")
def gcc():
    try:
        standin.sanitizer_libraries()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("gcc")
def test_addresses_are_watched():
    assert standin.call(_watched, STAGED, sanitized=True) == [4 * (15 - i // 4) + i for i in range(64)]


@pytest.mark.usefixtures("gcc")
@pytest.mark.parametrize(
    ("original", "mutant", "words"),
    [
        ("= a[threadIdx.x]", "= a[threadIdx.x + 1]", "heap-buffer-overflow, READ of size 4, k, line 3"),
        ("  b[threadIdx.x]", "  b[threadIdx.x + 1]", "heap-buffer-overflow, WRITE of size 4, k, line 7"),
        ("15 - thread", "16 - thread", "global-buffer-overflow, READ of size"),
        ("% 4 / 2]", "% 4 / 2 + 2]", "stack-buffer-overflow, READ of size"),
    ],
    ids=["read", "write", "shared memory", "own array"],
)
def test_one_too_far_is_a_stray_access(original, mutant, words):
    assert original in STAGED
    with pytest.raises(VerificationError, match="was ended by AddressSanitizer: " + words):
        standin.call(_watched, STAGED.replace(original, mutant), sanitized=True)


def _fill(count: int, allocated: int = 5) -> list[float]:
    """Write ones to the first `count` floats of `allocated` on the device."""
    import tvm
    from tvm.script import tirx as T

    standin.use_for_kernels()

    @T.prim_func
    def fill(a: T.Buffer((allocated,), "float32")):
        for i in T.thread_binding(count, thread="threadIdx.x"):
            a[i] = T.float32(1)

    built = tvm.compile(tvm.IRModule({"main": fill}), tvm.target.Target({"kind": "cuda", "arch": "sm_61"}, host="llvm"))
    tensor = tvm.runtime.tensor(np.zeros(allocated, "float32"), tvm.cuda(0))
    built(tensor)
    return tensor.numpy().tolist()


def _sum_beyond(count: int) -> None:
    """Add up `count` floats of eight."""
    import tvm
    from tvm.script import tirx as T

    standin.use_for_kernels()

    @T.prim_func
    def total(a: T.Buffer((8,), "float32"), b: T.Buffer((1,), "float32")):
        for _ in T.thread_binding(1, thread="threadIdx.x"):
            for i in range(count):
                b[0] = b[0] + a[i]

    target = tvm.target.Target({"kind": "cuda", "arch": "sm_61"}, host="llvm")
    given = [tvm.runtime.tensor(np.zeros(size, "float32"), tvm.cuda(0)) for size in (8, 1)]
    tvm.compile(tvm.IRModule({"main": total}), target)(*given)


def test_reading_behind_an_allocation_shows():
    with pytest.raises(
        Exception, match=r"total_kernel, block \(0,0,0\), thread \(0,0,0\): memory is touched where none is"
    ):
        standin.call(_sum_beyond, 9)


def test_tvm_takes_it_for_a_device():
    assert standin.call(_fill, 3) == [1, 1, 1, 0, 0]


@pytest.mark.usefixtures("gcc")
def test_a_stray_write_of_tvms_kernel_is_named():
    with pytest.raises(VerificationError, match=r"heap-buffer-overflow, WRITE of size 4, fill_kernel, line \d+"):
        standin.call(_fill, 6, sanitized=True)


def test_writing_behind_an_allocation_shows():
    with pytest.raises(Exception, match="fill_kernel wrote up to 4 bytes behind the end of 20 bytes of device memory"):
        standin.call(_fill, 6)
