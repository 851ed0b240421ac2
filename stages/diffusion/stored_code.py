"""A network's compiled code, stored so that later processes need not trace the network again.

The compiler's own cache spares them the compiling, but not the tracing that comes first: for a
grid of a few hundred pictures, a quarter of the time until the first is drawn.
"""

import inspect
import io
import platform
from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from stages.harness.files import replacing, sha256_json

Code = Callable[..., Any]  # takes the network, and what its `forward` takes

LIBRARIES = ("torch", "diffusers")  # whose code is compiled, and who compiles
DIGEST_BYTES = sha256().digest_size  # at the start of a file, of all that follows
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
GUARDS = "guard_filter_fn"  # the compiler's option that tells which of its checks are kept


class StoredCode:
    """Calls a network by code that was compiled for just such inputs; takes its `forward`'s place.

    The code holds no weights, so that others may take their place in the network. It has no checks
    either: whether it fits is told by its file's name, a hash of all that it was made for.
    """

    def __init__(
        self,
        network: nn.Module,
        config: Mapping[str, Any],
        folder: Path,
        backend: str,
        options: Mapping[str, Any],
    ) -> None:
        """Remember what is called.

        Args:
            network: in evaluation mode, and called in inference mode only.
            config: with the network's class, all that decides what it does.
            folder: holds the code that processes on this machine have stored.
            backend, options: of torch.compile.
        """
        self.network, self.folder = network, folder
        self.backend = backend
        self.options: dict[str, Any] = dict(options)
        self.forward: Code = type(network).forward
        # If that is decorated, it holds the function that it decorates, which cannot be stored.
        self.held = dict(inspect.getclosurevars(self.forward).nonlocals)
        state = network.state_dict()
        self.device = next(iter(state.values())).device
        self._made_for = sha256_json(
            {
                "network": [repr(network), _public(config)],
                "state": {name: _layout(value) for name, value in state.items()},
                "compiler": [backend, self.options],
                "python": [platform.python_version(), platform.machine()],
                "libraries": [torch.version.cuda, *map(version, LIBRARIES)],
                "processor": _processor(self.device),
            }
        )
        self._codes: dict[str, Code] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer as the network would; the first time, read its code or compile it in minutes."""
        key = self._key(args, kwargs)
        if key not in self._codes and (code := self._read(key)):
            try:
                answer = code(self.network, *args, **kwargs)
            except OUT_OF_MEMORY:
                raise  # fewer pictures at once may do
            except Exception as error:  # noqa: BLE001 # code that does not fit raises what it happens to raise
                self._say_made_anew(key, error)
            else:
                self._codes[key] = code
                return answer
        if key not in self._codes:
            self._codes[key] = self._compiled(key, args, kwargs)
        return self._codes[key](self.network, *args, **kwargs)

    def _key(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Hash all that code for such inputs depends on, as torch computes now."""
        computed = [
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_autocast_enabled(self.device.type),
            torch.get_num_threads() if self.device.type == "cpu" else None,
        ]
        inputs = [_layout(value) for value in args]
        named = {name: _layout(value) for name, value in kwargs.items()}
        return sha256_json([self._made_for, computed, inputs, named])

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.code"

    def _read(self, key: str) -> Code | None:
        """Give the code that an earlier process stored, if there is any that is whole."""
        path = self._file(key)
        if not path.is_file():
            return None
        import torch._inductor.config as compiler

        try:
            stored = path.read_bytes()
            digest, content = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
            if sha256(content).digest() != digest:
                raise ValueError("damaged")
            # All is compiled: the compiler's workers would start for nothing.
            with compiler.patch(compile_threads=1):
                return torch.compiler.load_compiled_function(
                    io.BytesIO(content), external_data=self.held
                )
        except OUT_OF_MEMORY:
            raise
        except Exception as error:  # noqa: BLE001 # torch has no errors of its own for it
            self._say_made_anew(key, error)
            return None

    def _compiled(self, key: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Code:
        """Compile for such inputs, and store the code."""
        torch._dynamo.config.enable_aot_compile = True  # torch 2.11 has it switched off
        options = {**self.options, GUARDS: _no_checks}
        try:
            traced: Any = torch.compile(
                self.forward, fullgraph=True, dynamic=False, backend=self.backend, options=options
            )
            code: Any = traced.aot_compile(((self.network, *args), kwargs))
        except OUT_OF_MEMORY:
            raise
        except Exception as error:  # noqa: BLE001 # torch calls this an experiment; it must cost no picture
            self._say_not_stored(error)
            plain: Code = torch.compile(
                self.forward, dynamic=False, backend=self.backend, options=self.options
            )
            return plain
        try:
            self._store(key, code)
        except Exception as error:  # noqa: BLE001 # a full disk, or what pickling raises
            self._say_not_stored(error)
        return code  # type: ignore[no-any-return]

    def _store(self, key: str, code: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.folder) as folder:
            written = Path(folder, "code")
            code.save_compiled_function(str(written), self.held)
            content = written.read_bytes()
        with replacing(self._file(key)) as scratch:
            scratch.write_bytes(sha256(content).digest() + content)

    def _say_made_anew(self, key: str, error: Exception) -> None:
        path = self._file(key)
        print(f"{path}: stored code that cannot be used, made anew ({_first(error)})", flush=True)

    def _say_not_stored(self, error: Exception) -> None:
        print(
            f"{type(self.network).__name__}: its compiled code cannot be stored ({_first(error)}); "
            "every process will trace it again",
            flush=True,
        )


def _first(error: Exception) -> str:
    """Give the first line of what an error says."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what diffusers notes for itself, as a list in another order in each process."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _no_checks(guards: list[Any]) -> list[bool]:
    return [False for _ in guards]


def _layout(value: Any) -> Any:
    """Tell all of an input that code depends on."""
    if isinstance(value, Tensor):
        return [str(value.dtype), str(value.device), list(value.shape), list(value.stride())]
    return repr(value)


def _processor(device: torch.device) -> str:
    """Name the kind of processor that code is compiled for."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability()
