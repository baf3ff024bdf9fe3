"""A GPU that is none, to follow what a program does with one: import this before torch, then `with SimulatedGPU() as gpu:`.

Tensors "on" it call themselves `cuda:0` and are computed by the CPU. What a GPU does not do is an error here too: computing with tensors of
two devices, holding more than its memory. And it keeps account: `gpu.peak` is the most bytes that were alive at once, `gpu.waits` lists where
the computer would have stood still until the GPU had caught up, `gpu.operations` and `gpu.flop` count what it was given to do. With
`numbers=False` (or with what was made on PyTorch's "meta" device) tensors on it have shapes only and nothing is computed: so SDXL is followed
at full size on a laptop. It knows nothing of a GPU's speed, rounding, kernels, or memory beside tensors.

Needs a C++ compiler (g++), for a few lines that let autograd believe in the device.
"""

import ctypes
import subprocess
import sys
import tempfile
import threading
import weakref
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch


def _believe():
    """Tell PyTorch, before it is imported, that there is a device of the type CUDA."""
    if "torch" in sys.modules:
        raise ImportError(
            "Import simulated_gpu before torch; what PyTorch has once learned of its devices it keeps."
        )
    torch = Path(find_spec("torch").origin).parent
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "believe.so"
        command = [
            "g++",
            "-std=c++20",
            "-O0",
            "-fPIC",
            "-shared",
            f"-I{torch / 'include'}",
            str(Path(__file__).with_suffix(".cpp")),
            "-o",
            str(library),
        ]
        subprocess.run(
            [*command, f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}"],
            check=True,
        )
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


_believe()

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

aten = torch.ops.aten
COPIES = (aten._to_copy, aten.copy_, aten._foreach_copy_)
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
ANSWERS_IN_NUMBERS = (
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten.allclose,
    aten._unique2,
    aten.unique_dim,
    aten.repeat_interleave,
)
FLOP = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}


class Held:
    """Lives as long as a tensor does, which must have no weak references itself to be swapped."""


class OnGPU(torch.Tensor):
    """A tensor that calls itself `cuda:0`; `inner` holds its numbers, or only its shape."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner, gpu):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cuda:0",
        )

    def __init__(self, inner, gpu):
        self.inner, self.gpu = inner, gpu
        gpu.hold(self)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        gpu = next(x.gpu for x in tree_flatten((args, kwargs))[0] if isinstance(x, OnGPU))
        return gpu.execute(func, args, kwargs or {})

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner

    def tolist(self):
        self.gpu.waits.append("tolist")
        return _some_numbers(self.inner).tolist()

    def __repr__(self):
        return f"OnGPU({self.inner})"


def _some_numbers(tensor):
    return torch.ones(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor


def _on_gpu(device):
    return device is not None and torch.device(device).type == "cuda"


class SimulatedGPU(TorchDispatchMode):
    """Inside, `torch.cuda` knows one GPU of `total` bytes and of the given compute capability.

    Attributes:
        live, peak: bytes of the tensors on it now, and at most so far (set `peak = live` to begin anew).
        waits: what made the computer wait for it, in words.
        operations, flop: PyTorch's operations that compute or copy (a GPU may need several kernels for one), and those in matrix products,
            attention and convolutions, a multiplication and an addition being two.
    """

    def __init__(self, total=80 * 2**30, capability=(9, 0), numbers=True):
        super().__init__()
        self.total, self.capability, self.numbers = total, capability, numbers
        self.live = self.peak = self.operations = self.flop = 0
        self.waits, self._held, self._pinned = (
            [],
            {},
            {},
        )  # pinned memory is kept: the address of what is gone would be used again

    def __enter__(self):
        import diffusers.models.autoencoders.autoencoder_kl
        from torch.optim import optimizer
        from torch.utils import _foreach_utils

        self._stack = ExitStack()
        free = lambda *device: (self.total - self.live, self.total)
        cuda = {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "set_device": lambda device: None,
            "get_device_name": lambda *device: "simulated GPU",
            "get_device_capability": lambda *device: self.capability,
            "get_device_properties": lambda *device: self,
            "is_bf16_supported": lambda *more: self.capability[0] >= 8,
            "mem_get_info": free,
            "memory_allocated": lambda *device: self.live,
            "memory_reserved": lambda *device: self.live,
            "max_memory_allocated": lambda *device: self.peak,
            "empty_cache": lambda: None,
            "synchronize": lambda *device: None,
            "get_rng_state": lambda *device: torch.zeros(16, dtype=torch.uint8),
            "set_rng_state": lambda *more: None,
        }
        for name, value in cuda.items():
            self._stack.enter_context(patch.object(torch.cuda, name, value))
        plain, run = torch.nn.functional.scaled_dot_product_attention, threading.Thread.run
        attention = lambda query, *more, **options: (
            _attention if isinstance(query, OnGPU) else plain
        )(query, *more, **options)
        self._stack.enter_context(
            patch.object(torch.nn.functional, "scaled_dot_product_attention", attention)
        )

        def run_within(thread):
            with self._this_thread():
                run(thread)

        self._stack.enter_context(patch.object(threading.Thread, "run", run_within))
        for supported in (
            _foreach_utils._foreach_supported_types,
            optimizer._foreach_supported_types,
        ):
            supported.append(OnGPU)  # as for a GPU's own tensors
            self._stack.callback(supported.remove, OnGPU)
        self._stack.callback(
            torch.__future__.set_swap_module_params_on_conversion,
            torch.__future__.get_swap_module_params_on_conversion(),
        )
        torch.__future__.set_swap_module_params_on_conversion(
            True
        )  # a parameter that is moved stays the same object, as on a GPU
        self._stack.enter_context(self._this_thread())
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)

    def _this_thread(self):
        """PyTorch's own modes are one to a thread."""
        stack = ExitStack()
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        TorchDispatchMode.__enter__(self)
        stack.push(lambda *error: TorchDispatchMode.__exit__(self, *error))
        return stack

    name, major, minor = (
        "simulated GPU",
        property(lambda self: self.capability[0]),
        property(lambda self: self.capability[1]),
    )
    total_memory = property(
        lambda self: self.total
    )  # this object also stands for the properties of its device

    def hold(self, tensor):
        """Account for a tensor's storage until the last tensor that uses it is gone."""
        storage = tensor.inner.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            if self.live + size > self.total:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. GPU 0 has a total capacity of {self.total / 2**30:.2f} GiB"
                )
            self.live += size
            self.peak = max(self.peak, self.live)
        self._held[key] = self._held.get(key, 0) + 1
        tensor.held = Held()
        weakref.finalize(tensor.held, self._release, key, size)

    def _release(self, key, size):
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
            self.live -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.execute(func, args, kwargs or {})

    def execute(self, func, args, kwargs):
        """Compute `func` on the tensors' insides. Raises a RuntimeError where a GPU would."""
        kwargs, flat, packet = dict(kwargs), tree_flatten((args, kwargs))[0], func.overloadpacket
        here, target = any(isinstance(x, OnGPU) for x in flat), kwargs.get("device")
        if packet is aten.is_pinned:
            return self._is_pinned(args[0])
        pinned = kwargs.pop("pin_memory", False) or packet is aten._pin_memory
        if not here and (pinned or not _on_gpu(target)):
            result = args[0].clone() if packet is aten._pin_memory else func(*args, **kwargs)
            if pinned:
                self._pinned[result.untyped_storage()._cdata] = result
            return result
        if packet not in COPIES:
            _refuse_two_devices(func, flat, packet in INDEXING)
        self._note_wait(packet, args, kwargs, flat)
        numberless = not self.numbers or any(
            x.is_meta or (isinstance(x, OnGPU) and x.inner.is_meta)
            for x in flat
            if isinstance(x, torch.Tensor)
        )
        if numberless and packet is aten._local_scalar_dense:
            return 1.0 if args[0].dtype.is_floating_point else 1
        if numberless and packet in (aten.copy_, aten._foreach_copy_):
            self.operations += 1
            return args[0] if packet is aten.copy_ else None

        def inside(x):
            x = x.inner if isinstance(x, OnGPU) else x
            return x.to("meta") if numberless and isinstance(x, torch.Tensor) else x

        flat, spec = tree_flatten((args, kwargs))
        insides = [inside(x) for x in flat]
        inner_args, inner_kwargs = tree_unflatten(insides, spec)
        if target is not None:
            inner_kwargs["device"] = torch.device("meta" if numberless else "cpu")
        result = func(*inner_args, **inner_kwargs)
        self._note_work(func, args, kwargs, insides, result)
        if packet is aten.copy_ or result is None:
            return args[0] if packet is aten.copy_ else None
        if not (_on_gpu(target) or (target is None and here)):
            return tree_map(
                lambda x: (
                    _some_numbers(x) if isinstance(x, torch.Tensor) and x.numel() <= 64 else x
                ),
                result,
            )
        known = {
            id(inner): x for inner, x in zip(insides, flat) if isinstance(x, OnGPU)
        }  # what was changed in place stays the tensor it was
        wrap = lambda x: (
            (known[id(x)] if id(x) in known else OnGPU(x, self))
            if isinstance(x, torch.Tensor)
            else x
        )
        return return_and_correct_aliasing(func, args, kwargs, tree_map(wrap, result))

    def _note_work(self, func, args, kwargs, insides, result):
        storage = lambda x: x.untyped_storage()._cdata
        before = {storage(x) for x in insides if isinstance(x, torch.Tensor)}
        made = [x for x in tree_flatten(result)[0] if isinstance(x, torch.Tensor)]
        if func._schema.is_mutable or (
            any(storage(x) not in before for x in made)
            and not func.overloadpacket.__name__.startswith(("empty", "new_empty"))
        ):
            self.operations += 1
        if func.overloadpacket in FLOP:
            self.flop += FLOP[func.overloadpacket](*args, **kwargs, out_val=result)

    def _note_wait(self, packet, args, kwargs, flat):
        if packet is aten._local_scalar_dense:
            self.waits.append("a number is read")
        elif packet in ANSWERS_IN_NUMBERS:
            self.waits.append(str(packet))
        elif packet in INDEXING:
            indices = [x for x in tree_flatten(args[1])[0] if isinstance(x, torch.Tensor)]
            if any(x.ndim and not isinstance(x, OnGPU) for x in indices) or any(
                x.dtype in (torch.bool, torch.uint8) for x in indices
            ):
                self.waits.append("an index is a mask, or comes from the computer's memory")
        elif packet in COPIES:
            tensors = [x for x in flat if isinstance(x, torch.Tensor)]
            places = {isinstance(x, OnGPU) for x in tensors} | (
                {_on_gpu(kwargs["device"])} if kwargs.get("device") is not None else set()
            )
            asked = kwargs.get("non_blocking") or (
                packet is not aten._to_copy and args[2:] == (True,)
            )
            lands = packet is aten._to_copy and isinstance(args[0], OnGPU)  # in ordinary memory
            if len(places) == 2 and not (
                asked
                and not lands
                and all(isinstance(x, OnGPU) or self._is_pinned(x) for x in tensors)
            ):
                self.waits.append(f"a copy of {tuple(tensors[0].shape)}")

    def _is_pinned(self, tensor):
        return tensor.untyped_storage()._cdata in self._pinned


def _refuse_two_devices(func, tensors, indexing):
    for x in tensors:
        if (
            isinstance(x, torch.Tensor)
            and not isinstance(x, OnGPU)
            and x.ndim
            and not (indexing and not x.dtype.is_floating_point)
        ):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found cuda:0 and {x.device}, in {func}"
            )


def _attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **options
):
    """Attention that never holds all scores at once, as on a GPU."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(
            ~attn_mask, float("-inf")
        )
    return aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
