"""The function from pixels to the rows of every tap of a backbone, eager or compiled."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import fx, nn

from featx._torch import unlimited_compilations
from featx.backbones.backbone import Backbone
from featx.backbones.layers import Layers
from featx.backbones.pools import Pool, Tap
from featx.backbones.preprocessing import Preprocessing
from featx.backbones.trace import trace_of
from featx.errors import BackboneError, FeatxError, Parameter

EAGER, COMPILED = "eager, batch norms folded", "compiled, batch norms folded"


class TappedNetwork:
    """Computes the rows of every tap from pixels, in one forward pass.

    Parameters
    ----------
    backbone : Backbone
    taps : sequence of Tap
        The network is cut after the deepest of them.
    device : str
        Device on which the network runs.
    precision : "float32", "bfloat16" or "float16"
        Number type of the network; pooling is always float32.
    engine : EAGER or COMPILED
        COMPILED is by inductor with frozen weights, for the number of images of the first call.
    preprocessing : Preprocessing, optional
        Its size, mean and standard deviation are used; by default the backbone's.
    trace : Layers, optional
        Layers of the backbone from `trace_of`, if they exist already; the network takes them over.

    Raises
    ------
    BackboneError
        In a call: the network cannot be compiled on this machine, a library's network does not run on such images, or
        the shape of its rows is not that of the taps.
    """

    def __init__(
        self,
        backbone: Backbone,
        taps: Sequence[Tap],
        device: torch.device,
        precision: str,
        engine: str = EAGER,
        preprocessing: Preprocessing | None = None,
        trace: Layers | None = None,
    ) -> None:
        self.precision, self.engine = precision, engine
        self._name, self._taps = backbone.name, list(taps)
        self._made_of, self._device, self._type = (backbone, taps, preprocessing), device, getattr(torch, precision)
        trace = trace_of(backbone) if trace is None else trace
        self._compilable = trace.compilable
        network = trace.tapped([tap.node for tap in taps], [Pool(tap) for tap in taps])
        self._network = network.to(device, self._type).requires_grad_(False)
        for parameter in self._network.parameters():
            if parameter.dim() == 4:  # convolutions on channels-last memory are 1.5 times as fast on a CPU
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._wrapped(engine)

    def in_type(self, precision: str) -> TappedNetwork:
        """An eager copy of the network in another number type; the two share no weights."""
        backbone, taps, preprocessing = self._made_of
        if not isinstance(self._network, fx.GraphModule):  # hooks belong to the network for which they were made
            return TappedNetwork(backbone, taps, self._device, precision, preprocessing=preprocessing)
        other = copy.copy(self)
        other.precision, other._type = precision, getattr(torch, precision)
        other._network = copy.deepcopy(self._network).to(other._type)
        return other._wrapped(EAGER)

    def compiled(self) -> TappedNetwork:
        """The same network, compiled, with the same weights."""
        return copy.copy(self)._wrapped(COMPILED)

    def _wrapped(self, engine: str) -> TappedNetwork:
        backbone, _, preprocessing = self._made_of
        self.engine, self._compiled = engine, False
        normalised = _Normalised(self._network, preprocessing or backbone.preprocessing, self._type)
        self._normalised = normalised.to(self._device)
        return self

    def __call__(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 pixels (b, h, w, 3), or normalised floats (b, 3, h, w) -> {tap name: (b, *shape) float32}.

        With v views of each image, (b, v, h, w, 3) -> (b, v, *shape): one pass for each view, so that memory, compiled
        code and numbers are those of b images.
        """
        pixels = pixels.to(self._device, non_blocking=True)
        if pixels.ndim == 5:
            passes = [self(view.contiguous()) for view in pixels.unbind(1)]
            return {tap.name: torch.stack([rows[tap.name] for rows in passes], 1) for tap in self._taps}
        with torch.no_grad() if self.engine == COMPILED else torch.inference_mode(), _exact(self._device):
            try:
                if pixels.is_floating_point():
                    rows = self._network(pixels.to(self._type))
                elif self.engine == COMPILED and not self._compiled:
                    rows = self._compile(pixels)
                else:
                    rows = self._normalised(pixels)
            except (FeatxError, torch.OutOfMemoryError):  # smaller passes may fit
                raise
            except Exception as error:  # the network's code may raise anything
                if self._name.startswith("module:"):  # the user's own code: its author reads the error
                    raise
                cause = str(error).strip().split("\n")[0] or type(error).__name__
                size = " x ".join(map(str, pixels.shape[1:]))
                raise BackboneError(f"{self._name} does not run on images of {size}: {cause}") from error
        for tap, values in zip(self._taps, rows, strict=True):
            if tuple(values.shape[1:]) != tap.shape:
                raise BackboneError(
                    f"layer {tap.name!r} of {self._name} gives rows of shape {tuple(values.shape[1:])}; the recipe "
                    f"says {tap.shape}. It was made with another network, or its file was changed"
                )
        return {tap.name: values for tap, values in zip(self._taps, rows, strict=True)}

    def _compile(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        try:
            if not self._compilable:
                raise RuntimeError("the network runs with hooks")
            # earlier networks count towards torch's limit; the user's own compiled networks are left alone
            with (
                _quiet_compiler(),
                unlimited_compilations(),
            ):
                # not dynamic: all batches have one size, and code for that size is the fastest
                self._normalised.compile(dynamic=False, fullgraph=True, options={"freezing": True})
                rows = self._normalised(pixels)
        except torch.OutOfMemoryError:  # smaller passes may fit
            raise
        except Exception as error:  # no compiler, a failing one, an operation unknown to inductor: many types
            raise BackboneError(
                f"the network cannot be compiled here ({type(error).__name__}); is there a C++ compiler, and "
                "does the network run without hooks? ",
                Parameter("engine", "eager"),
                " needs neither",
            ) from error
        self._compiled = True
        return rows


class _Normalised(nn.Module):
    """Normalisation followed by the network; a compiler fuses it with the first layer."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, number_type: torch.dtype) -> None:
        super().__init__()
        self._network, self._type = network, number_type
        self._normalise = preprocessing.normalise

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._network(self._normalise(pixels).to(self._type))


@contextlib.contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Turn off TF32, which cuDNN's convolutions use by default on a GPU: float32 means float32."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@contextlib.contextmanager
def _quiet_compiler() -> Iterator[None]:
    """Silence the compiler's warnings about the machine, which do not help the user of a network."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
