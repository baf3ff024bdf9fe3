"""A simulated GPU, to follow what a program does with one.

Import this before torch, then `with SimulatedGPU() as gpu:`. Tensors "on" it call themselves
`cuda:0` and are computed by the CPU. What a GPU refuses is an error here too: computing with
tensors of two devices, holding more than its memory. And it keeps account: `gpu.peak` is the most
bytes that were alive at once, `gpu.waits` lists where the computer would have waited until the
GPU had caught up, `gpu.operations` and `gpu.flop` count what it was given to do. With
`numbers=False` (or with what was made on PyTorch's "meta" device) tensors on it have shapes only
and nothing is computed: so SDXL is followed at full size on a laptop. It knows nothing of a GPU's
speed, rounding, kernels, or memory beside tensors.

Needs a C++ compiler (g++), for a few lines that let autograd believe in the device.
"""

import ctypes
import subprocess
import sys
import tempfile
import threading
import weakref
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch


def _believe() -> None:
    """Tell PyTorch, before it is imported, that there is a device of the type CUDA."""
    if "torch" in sys.modules:
        raise ImportError("Import simulated_gpu before torch: PyTorch looks for devices only once.")
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise ImportError("PyTorch is not installed.")
    torch = Path(spec.origin).parent
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "believe.so"
        source = Path(__file__).with_suffix(".cpp")
        command = ["g++", "-std=c++20", "-O0", "-fPIC", "-shared", f"-I{torch / 'include'}"]
        command += [str(source), "-o", str(library), f"-L{torch / 'lib'}"]
        command += ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}"]
        subprocess.run(command, check=True)
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
    """A tensor that calls itself `cuda:0`; `inside` holds its numbers, or only its shape."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    held: Held

    @staticmethod
    def __new__(cls, inside: torch.Tensor, gpu: "SimulatedGPU") -> "OnGPU":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inside.size(),
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=torch.device("cuda:0"),
        )

    def __init__(self, inside: torch.Tensor, gpu: "SimulatedGPU") -> None:
        self.inside, self.gpu = inside, gpu
        gpu.hold(self)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: torch._ops.OpOverload, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        gpu = next(x.gpu for x in tree_flatten((args, kwargs))[0] if isinstance(x, OnGPU))
        return gpu.execute(func, args, kwargs or {})

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter  # type: ignore[override]
    def data(self, value: "OnGPU") -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inside = value.inside

    def tolist(self) -> list:
        self.gpu.waits.append("tolist")
        return _some_numbers(self.inside).tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGPU({self.inside})"


def _some_numbers(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that has numbers: ones where it has only a shape."""
    return torch.ones(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor


def _on_gpu(device: torch.device | str | int | None) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class SimulatedGPU(TorchDispatchMode):
    """Inside, `torch.cuda` knows one GPU of `total` bytes and of the given compute capability.

    Attributes:
        live, peak: bytes of the tensors on it now, and at most so far; set `peak = live` to begin
            again.
        waits: what made the computer wait for it, in words.
        operations: PyTorch's that compute or copy; a GPU may need several kernels for one.
        flop: in matrix products, attention and convolutions; a multiplication and an addition
            are two.
    """

    name = "simulated GPU"

    def __init__(
        self,
        total: int = 80 * 2**30,
        capability: tuple[int, int] = (9, 0),
        numbers: bool = True,
    ) -> None:
        super().__init__()
        self.total, self.capability, self.numbers = total, capability, numbers
        # this object also stands for the properties of its device
        self.major, self.minor = capability
        self.live = self.peak = self.operations = self.flop = 0
        self.waits: list[str] = []
        self._held: dict[int, int] = {}
        # kept, because the address of what is gone would be used again
        self._pinned: dict[int, torch.Tensor] = {}

    @property
    def total_memory(self) -> int:
        return self.total

    def __enter__(self) -> "SimulatedGPU":
        # imported before anything is patched
        import_module("diffusers.models.autoencoders.autoencoder_kl")
        from torch.optim import optimizer
        from torch.utils import _foreach_utils

        self._stack = ExitStack()
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
            "mem_get_info": lambda *device: (self.total - self.live, self.total),
            "memory_allocated": lambda *device: self.live,
            "memory_reserved": lambda *device: self.live,
            "max_memory_allocated": lambda *device: self.peak,
            "max_memory_reserved": lambda *device: self.peak,
            "reset_peak_memory_stats": lambda *device: setattr(self, "peak", self.live),
            "empty_cache": lambda: None,
            "synchronize": lambda *device: None,
            "get_rng_state": lambda *device: torch.zeros(16, dtype=torch.uint8),
            "set_rng_state": lambda *more: None,
        }
        for name, value in cuda.items():
            self._stack.enter_context(patch.object(torch.cuda, name, value))
        functional = torch.nn.functional
        plain, run = functional.scaled_dot_product_attention, threading.Thread.run

        def attention(query: torch.Tensor, *more: Any, **options: Any) -> torch.Tensor:
            compute = _attention if isinstance(query, OnGPU) else plain
            return compute(query, *more, **options)

        def run_within(thread: threading.Thread) -> None:
            with self._this_thread():
                run(thread)

        self._stack.enter_context(
            patch.object(functional, "scaled_dot_product_attention", attention)
        )
        self._stack.enter_context(patch.object(threading.Thread, "run", run_within))
        # multi-tensor operations, as for a GPU's own tensors
        for module in (_foreach_utils, optimizer):
            module._foreach_supported_types.append(OnGPU)
            self._stack.callback(module._foreach_supported_types.remove, OnGPU)
        # a parameter that is moved stays the same object, as on a GPU
        future = torch.__future__
        swapped = future.get_swap_module_params_on_conversion()
        self._stack.callback(future.set_swap_module_params_on_conversion, swapped)
        future.set_swap_module_params_on_conversion(True)
        self._stack.enter_context(self._this_thread())
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def _this_thread(self) -> ExitStack:
        """PyTorch's own modes are one to a thread."""
        stack = ExitStack()
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        TorchDispatchMode.__enter__(self)
        stack.push(lambda *error: TorchDispatchMode.__exit__(self, *error))
        return stack

    def hold(self, tensor: OnGPU) -> None:
        """Account for a tensor's storage until the last tensor that uses it is gone."""
        storage = tensor.inside.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            if self.live + size > self.total:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. GPU 0 has a "
                    f"total capacity of {self.total / 2**30:.2f} GiB"
                )
            self.live += size
            self.peak = max(self.peak, self.live)
        self._held[key] = self._held.get(key, 0) + 1
        tensor.held = Held()
        weakref.finalize(tensor.held, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
            self.live -= size

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return self.execute(func, args, kwargs or {})

    def execute(self, func: torch._ops.OpOverload, args: tuple, kwargs: dict) -> Any:
        """Compute `func` on the tensors' insides. Raises a RuntimeError where a GPU would."""
        kwargs, packet = dict(kwargs), func.overloadpacket
        flat, _ = tree_flatten((args, kwargs))
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
        numberless = not self.numbers or any(_is_numberless(x) for x in flat)
        if numberless and packet is aten._local_scalar_dense:
            return 1.0 if args[0].dtype.is_floating_point else 1
        if numberless and packet in (aten.copy_, aten._foreach_copy_):
            self.operations += 1
            return args[0] if packet is aten.copy_ else None

        def inside(x: Any) -> Any:
            x = x.inside if isinstance(x, OnGPU) else x
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
            return tree_map(_readable, result)
        # what was changed in place stays the tensor it was
        known = {id(inner): x for inner, x in zip(insides, flat) if isinstance(x, OnGPU)}

        def wrap(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                return x
            return known[id(x)] if id(x) in known else OnGPU(x, self)

        return return_and_correct_aliasing(func, args, kwargs, tree_map(wrap, result))

    def _note_work(
        self, func: torch._ops.OpOverload, args: tuple, kwargs: dict, insides: list, result: Any
    ) -> None:
        before = {_storage(x) for x in insides if isinstance(x, torch.Tensor)}
        made = [x for x in tree_flatten(result)[0] if isinstance(x, torch.Tensor)]
        only_allocates = func.overloadpacket.__name__.startswith(("empty", "new_empty"))
        is_new = any(_storage(x) not in before for x in made) and not only_allocates
        if func._schema.is_mutable or is_new:
            self.operations += 1
        if func.overloadpacket in FLOP:
            self.flop += FLOP[func.overloadpacket](*args, **kwargs, out_val=result)

    def _note_wait(
        self, packet: torch._ops.OpOverloadPacket, args: tuple, kwargs: dict, flat: list
    ) -> None:
        if packet is aten._local_scalar_dense:
            self.waits.append("a number is read")
        elif packet in ANSWERS_IN_NUMBERS:
            self.waits.append(str(packet))
        elif packet in INDEXING:
            indices = [x for x in tree_flatten(args[1])[0] if isinstance(x, torch.Tensor)]
            elsewhere = any(x.ndim and not isinstance(x, OnGPU) for x in indices)
            if elsewhere or any(x.dtype in (torch.bool, torch.uint8) for x in indices):
                self.waits.append("an index is a mask, or comes from the computer's memory")
        elif packet in COPIES:
            tensors = [x for x in flat if isinstance(x, torch.Tensor)]
            places = {isinstance(x, OnGPU) for x in tensors}
            if kwargs.get("device") is not None:
                places.add(_on_gpu(kwargs["device"]))
            to_new_place = packet is aten._to_copy
            asked = kwargs.get("non_blocking") or (not to_new_place and args[2:] == (True,))
            pinned = all(isinstance(x, OnGPU) or self._is_pinned(x) for x in tensors)
            to_ordinary_memory = to_new_place and isinstance(args[0], OnGPU)
            is_async = asked and pinned and not to_ordinary_memory
            if len(places) == 2 and not is_async:
                self.waits.append(f"a copy of {tuple(tensors[0].shape)}")

    def _is_pinned(self, tensor: torch.Tensor) -> bool:
        return _storage(tensor) in self._pinned


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_numberless(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and (x.inside if isinstance(x, OnGPU) else x).is_meta


def _readable(x: Any) -> Any:
    """What a program may read: small tensors have numbers."""
    return _some_numbers(x) if isinstance(x, torch.Tensor) and x.numel() <= 64 else x


def _refuse_two_devices(func: torch._ops.OpOverload, tensors: list, indexing: bool) -> None:
    for x in tensors:
        if not isinstance(x, torch.Tensor) or isinstance(x, OnGPU) or not x.ndim:
            continue
        if not indexing or x.dtype.is_floating_point:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found cuda:0 and "
                f"{x.device}, in {func}"
            )


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **options: Any,
) -> torch.Tensor:
    """Attention that never holds all scores at once, as on a GPU."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        zeros = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = zeros.masked_fill(~attn_mask, float("-inf"))
    return aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
