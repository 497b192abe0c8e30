"""A pretend GPU: code for CUDA runs on the CPU, and raises where a GPU would.

A `PretendTensor` shares the memory of a CPU tensor, so views, operations in place and `out=` alias as ever, and says
that it is on "cuda:0". Operations on it and a CPU tensor raise, unless that has no dimensions; so does `numpy()`.
What a copy with `non_blocking=True` writes to pinned memory arrives when its event, or the device, is waited for, and
until then the memory holds NaN; what such a copy reads must not change until then.

Stricter than a GPU: CPU tensors as indices raise, which a GPU copies silently. Less strict: all streams are one, and
operations that CUDA lacks, or that round otherwise there, are the CPU's.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

_MOVES = {"to", "cpu", "cuda", "copy_", "pin_memory"}
_REFUSED = {"numpy", "__array__", "__dlpack__"}
_WAITING = {"item", "tolist", "nonzero", "equal", "__bool__", "__float__", "__int__", "__index__"}  # read by the CPU


class PretendTensor(torch.Tensor):
    """A tensor on GPU number `gpu`."""

    device_: ClassVar[PretendCuda]
    gpu: int

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls.device_.call(func, args, kwargs or {})


class PretendCuda(TorchFunctionMode):
    """GPUs while this context lasts, in the thread that enters it.

    Parameters
    ----------
    names : of the GPUs
    total_bytes : of memory, of each
    largest_tensor : in bytes; OutOfMemoryError where an operation makes a larger one
    """

    def __init__(
        self, names: tuple[str, ...] = ("Pretend",), total_bytes: int = 2**33, largest_tensor: float = math.inf
    ) -> None:
        super().__init__()
        self.names, self.total_bytes, self.largest_tensor = names, total_bytes, largest_tensor
        self.current = self.peak_bytes = self.n_refusals = 0
        self.pinned: list[Tensor] = []
        self.copies: deque[Callable[[], object]] = deque()  # under way
        self.n_done = 0
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> PretendCuda:
        self._patches.enter_context(mock.patch.multiple(torch.cuda, **self._queries()))
        self._patches.enter_context(mock.patch.object(PretendTensor, "device_", self, create=True))
        stream = SimpleNamespace(is_capturing=lambda: False)  # the optimizers of torch ask for it
        self._patches.enter_context(mock.patch.object(torch.accelerator, "current_stream", lambda device=None: stream))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """`func(*args, **kwargs)` as a GPU would have it; in here, torch sees CPU tensors alone."""
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):  # of an attribute
            name = getattr(func.__self__, "__name__", "")
        tensors = list(_tensors([args, kwargs.values()]))
        places = [self._place(tensor) for tensor in tensors]
        pinned, asked = kwargs.get("pin_memory"), kwargs.get("device")
        place = next((place for place in places if place.type == "cuda"), torch.device("cpu"))
        if place.type != "cuda" and not pinned and asked is None and not (name in _MOVES and tensors):
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            if name in _MOVES and tensors:
                return getattr(self, f"_{name.strip('_')}")(*args, **kwargs)
            if place.type == "cuda":
                if name in ("device", "is_cuda", "is_cpu", "get_device"):
                    return {"device": place, "is_cuda": True, "is_cpu": False, "get_device": place.index}[name]
                if name in _REFUSED:
                    raise TypeError(f"can't convert {place} device type tensor to numpy. Use Tensor.cpu() first")
                if name == "__deepcopy__":
                    return self._deepcopy(*args)
                if name in _WAITING:
                    self.synchronize()
                mixed = [other for other, tensor in zip(places, tensors, strict=True) if tensor.dim() or other == place]
                if name == "_has_compatible_shallow_copy_type" and len(set(mixed)) > 1:
                    return False  # so `nn.Module.to` puts new parameters in place of the old ones
                if len(set(mixed)) > 1:
                    raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {set(mixed)}")
            options = {key: value for key, value in kwargs.items() if key != "pin_memory"}
            if asked is not None and (place := self._numbered(asked)).type == "cuda":
                options["device"] = "cpu"
            result = func(*args, **options)
            if pinned:
                return self._pin_memory(result)
            return tree_map_only(Tensor, lambda one: self._on(one, place), result)

    def _place(self, tensor: Tensor) -> torch.device:
        return torch.device("cuda", tensor.gpu) if isinstance(tensor, PretendTensor) else tensor.device

    def _numbered(self, device: Any) -> torch.device:
        device = torch.device(device)
        if device.type == "cuda" and not (device.index or 0) < len(self.names):
            raise RuntimeError(f"CUDA error: invalid device ordinal {device.index}")
        return torch.device("cuda", self.current) if device.type == "cuda" and device.index is None else device

    def _on(self, tensor: Tensor, place: torch.device) -> Tensor:
        """A CPU tensor as one that is on the device, of the same memory."""
        if place.type != "cuda" or isinstance(tensor, PretendTensor):
            return tensor
        self.peak_bytes += tensor.nbytes
        if tensor.nbytes > self.largest_tensor:
            self.n_refusals += 1
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {tensor.nbytes} bytes")
        made = tensor.as_subclass(PretendTensor)
        made.gpu = place.index
        return made

    # Copies between the devices

    def _to(self, tensor: Tensor, *wanted: Any, **options: Any) -> Tensor:
        place, dtype = self._place(tensor), tensor.dtype
        non_blocking = options.pop("non_blocking", False)
        for value in (*wanted, *(options.pop(name, None) for name in ("other", "device", "dtype"))):
            if isinstance(value, Tensor):
                place, dtype = self._place(value), value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, bool):
                non_blocking = value
            elif value is not None:
                place = self._numbered(value)
        if place == self._place(tensor):
            return self._on(tensor.to(dtype, **options), place)
        copied = tensor.to(dtype, **(options | {"copy": True}))
        if place.type == "cpu":
            if non_blocking:
                self._pin_memory(copied)
            return self._copy(copied, tensor, non_blocking)
        if non_blocking and self._is_pinned(tensor):
            self._watch(tensor)
        return self._on(copied, place)

    def _cpu(self, tensor: Tensor, **options: Any) -> Tensor:
        return self._to(tensor, "cpu", **options)

    def _cuda(self, tensor: Tensor, device: Any = "cuda", *options: Any, **named: Any) -> Tensor:
        return self._to(tensor, "cuda" if device is None else device, *options, **named)

    def _copy(self, to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        waits = isinstance(source, PretendTensor) and not isinstance(to, PretendTensor)
        if waits and non_blocking and self._is_pinned(to):
            kept = source.clone()  # later changes of the source come after the copy
            to.fill_(math.nan if to.is_floating_point() else 77)
            self.copies.append(lambda: to.copy_(kept))
            return to
        if waits:
            self.synchronize()
        elif isinstance(to, PretendTensor) and non_blocking and self._is_pinned(source):
            self._watch(source)
        return to.copy_(source)

    def _watch(self, source: Tensor) -> None:
        """Raise, once the copy is waited for, if its source was written to in the meantime."""
        before = source.numpy().tobytes()

        def check() -> None:
            if source.numpy().tobytes() != before:
                raise RuntimeError("pinned memory was written to before its copy to the GPU was waited for")

        self.copies.append(check)

    def _pin_memory(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, PretendTensor):
            raise RuntimeError("cannot pin memory of a GPU: only dense CPU tensors can be pinned")
        self.pinned.append(tensor)  # kept, so that no other tensor gets this memory
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        starts = [(pinned.data_ptr(), pinned.nbytes) for pinned in self.pinned]
        return any(start <= tensor.data_ptr() < start + nbytes for start, nbytes in starts)

    def _deepcopy(self, tensor: PretendTensor, memo: dict[int, Any]) -> Tensor:
        if id(tensor) not in memo:
            copied = self._on(tensor.detach().clone(), self._place(tensor)).requires_grad_(tensor.requires_grad)
            copied.__dict__ |= tensor.__dict__  # whether it is a parameter
            memo[id(tensor)] = copied
        return memo[id(tensor)]

    def synchronize(self, *_: Any, until: float = math.inf) -> None:
        """Wait for copies, all or those that were under way when an event was recorded."""
        with torch._C.DisableTorchFunctionSubclass(), torch.inference_mode():
            while self.copies and self.n_done < until:
                self.n_done += 1
                self.copies.popleft()()

    # torch.cuda

    def _queries(self) -> dict[str, Any]:
        """What replaces functions and classes of torch.cuda."""
        device = self

        class Event:
            def __init__(self, *_: Any, **__: Any) -> None:
                self.until = 0

            def record(self, *_: Any) -> None:
                self.until = device.n_done + len(device.copies)

            def synchronize(self) -> None:
                device.synchronize(until=self.until)

            def query(self) -> bool:
                return device.n_done >= self.until

            def wait(self, *_: Any) -> None:
                pass

            def elapsed_time(self, end: Event) -> float:
                return 1.0

        class Stream:
            def __init__(self, *_: Any, **__: Any) -> None: ...

            synchronize = staticmethod(device.synchronize)
            wait_event = wait_stream = staticmethod(lambda other: None)

            def record_event(self, event: Event | None = None) -> Event:
                event = event or Event()
                event.record()
                return event

        def set_device(number: Any) -> None:
            self.current = self._numbered(torch.device("cuda", number) if isinstance(number, int) else number).index

        def properties(number: Any = None) -> SimpleNamespace:
            name = self.names[self.current if number is None else self._numbered(number).index]
            return SimpleNamespace(name=name, total_memory=self.total_bytes, major=9, minor=0, multi_processor_count=1)

        return {
            "Event": Event,
            "Stream": Stream,
            "current_device": lambda: self.current,
            "current_stream": lambda device=None: Stream(),
            "device_count": lambda: len(self.names),
            "empty_cache": lambda: None,
            "get_device_capability": lambda device=None: (9, 0),
            "get_device_name": lambda device=None: properties(device).name,
            "get_device_properties": properties,
            "get_rng_state": lambda device=None: torch.empty(0),
            "is_available": lambda: True,
            "is_bf16_supported": lambda including_emulation=True: True,
            "is_initialized": lambda: True,
            "manual_seed_all": lambda seed: None,  # numbers drawn are the CPU's
            "max_memory_allocated": lambda device=None: self.peak_bytes,
            "mem_get_info": lambda device=None: (self.total_bytes, self.total_bytes),
            "memory_allocated": lambda device=None: 0,
            "reset_peak_memory_stats": lambda device=None: setattr(self, "peak_bytes", 0),
            "set_device": set_device,
            "set_rng_state": lambda state, device=None: None,
            "stream": lambda stream: contextlib.nullcontext(stream),
            "synchronize": self.synchronize,
        }


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list | type({}.values())):
            yield from _tensors(value)
