# SPDX-License-Identifier: Apache-2.0
"""Trees in files: safetensors, which any program can read and which run no code, with the paths of leaves as names.

The tensors stand in the file under names such as ``0/mu/encoder/weight``.  All else (numbers, ``None``, which named
tuples there were, which tensors were one and the same) is in its metadata, as JSON, with a checksum over everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import zlib
from typing import TYPE_CHECKING, Any

import torch

from torchopt.tree.paths import flatten_with_keys
from torchopt.tree.registry import structure, unflatten
from torchopt.tree.state import DictKey, NamedTupleKey

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from torchopt.tree.state import KeyPath

__all__ = ['load', 'save']

VERSION = 1
_METADATA = 'torchopt'
_SHOWN = 8  # differences that an error message lists

# Python numbers are written as text that gives the same number back.
_PLAIN: dict[str, Callable[[str], Any]] = {
    'bool': lambda text: text == 'True',
    'int': int,
    'float': float,
    'complex': complex,
    'str': str,
}


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Write a tree to a safetensors file.

    The file appears whole or not at all: it is written under another name in the same folder, brought to the disk, and
    then put in the place of ``path``.

    Leaves may be dense tensors on any device, numbers, strings, ``None`` and :class:`torch.Generator`.  Strided and
    expanded tensors are written densely.  Tensors that are one memory (tied weights) are written once and are one
    tensor again when loaded.  safetensors has no complex128: it is written as pairs of float64.

    Args:
        path: The file; one that is there is replaced.
        tree: Parameters, an optimizer's state, or both: ``{'params': params, 'state': state}``.

    Raises:
        ImportError: If the package ``safetensors`` is not installed.
        OSError: If the file cannot be written; one that was there is as it was.
        TypeError: If a leaf is something else, or a tensor that is sparse, quantized, on the meta device or of a
            subclass; the message names it.
        ValueError: If two leaves would have one name, such as those at ``0`` and ``'0'`` of a dict.

    Example:
        >>> import os, tempfile, torch, torchopt
        >>> params = {'encoder': [torch.ones(2)]}
        >>> state = torchopt.adam().init(params)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = os.path.join(folder, 'state.safetensors')
        ...     torchopt.tree.save(file, state)
        ...     torchopt.tree.load(file, like=state)[0].mu
        {'encoder': [tensor([0., 0.])]}
    """
    package = _safetensors()
    named, kinds = _named(tree)
    tensors: dict[str, torch.Tensor] = {}
    records: dict[str, list[str]] = {}
    seen: dict[Any, str] = {}
    for name, x in named.items():
        records[name], data = _describe(name, x)
        if data is None:
            continue
        first = seen.setdefault(_memory(x), name)
        if first == name:
            tensors[name] = data
        else:
            records[name] = ['tied', first]
    manifest = {'version': VERSION, 'kinds': kinds, 'leaves': records}
    manifest['checksum'] = _checksum(manifest, tensors)
    target = os.path.realpath(path)
    folder, base = os.path.split(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f'There is no folder {folder!r} to save {base!r} in. Make it first.')
    temporary = os.path.join(folder, f'.{base}.{secrets.token_hex(8)}')
    try:
        with open(temporary, 'xb') as file:
            mode = os.stat(target if os.path.exists(target) else file.fileno()).st_mode
        try:
            package.torch.save_file(_apart(tensors), temporary, {_METADATA: json.dumps(manifest)})
        except package.SafetensorError as error:
            raise OSError(f'{os.fspath(path)!r} could not be written: {error}') from error
        os.chmod(temporary, stat.S_IMODE(mode))  # safetensors makes files that only their owner can read
        _to_disk(temporary)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _to_disk(folder)


def load(path: str | os.PathLike[str], like: Any) -> Any:
    """Read a tree that :func:`save` wrote.

    Args:
        path: The file.
        like: A tree of the structure, shapes and dtypes that are expected, such as ``optimizer.init(params)``.  It is
            only looked at.  Its tensors may be on the meta device.

    Returns:
        A new tree: each tensor is on the device of the one in its place in ``like`` (that is, on the CPU for one on the
        meta device), is a parameter or requires grad if that does; numbers are those of the file.

    Raises:
        ImportError: If the package ``safetensors`` is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, of a newer version or no file of :func:`save`, or if the tree in it
            differs from ``like``; the message names what is missing, unexpected, or of another shape, dtype or kind.

    Example:
        >>> import os, tempfile, torch, torchopt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = os.path.join(folder, 'params.safetensors')
        ...     torchopt.tree.save(file, {'w': torch.ones(2)})
        ...     torchopt.tree.load(file, like={'w': torch.ones(3)})
        Traceback (most recent call last):
            ...
        ValueError: The tree in '...params.safetensors' is not like the one expected:
          w: expected torch.float32 of shape (3,), the file has torch.float32 of shape (2,)
    """
    found_kinds, found = _read(path)
    named, kinds = _named(like)
    wrong = [
        f'{place or "the root"}: expected a {kind}, the file has a {found_kinds[place]}'
        for place, kind in kinds.items()
        if found_kinds.get(place, kind) != kind
    ]
    wrong += [f'{name}: missing, expected {_words(x)}' for name, x in named.items() if name not in found]
    wrong += [f'{name}: unexpected, the file has {_words(x)}' for name, x in found.items() if name not in named]
    wrong += [
        f'{name}: expected {_words(x)}, the file has {_words(found[name])}'
        for name, x in named.items()
        if name in found and _words(found[name]) != _words(x)
    ]
    if wrong:
        more = [f'and {len(wrong) - _SHOWN} more'] if len(wrong) > _SHOWN else []
        lines = ''.join(f'\n  {line}' for line in wrong[:_SHOWN] + more)
        raise ValueError(f'The tree in {os.fspath(path)!r} is not like the one expected:{lines}')
    placed: dict[int, Any] = {}  # what is tied in the file stays tied
    for name, x in named.items():
        placed.setdefault(id(found[name]), _place(found[name], x))
    return unflatten(structure(like), [placed[id(found[name])] for name in named])


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError(
            'Saving and loading trees needs the package safetensors. Run: pip install torchopt[persistence]'
        ) from None
    return safetensors


# -- names -----------------------------------------------------------------------------------------


def _named(tree: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The leaves by name, and the classes of the named tuples above them by the names of their places."""
    named: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for path, x in flatten_with_keys(tree):
        for i, key in enumerate(path):
            if isinstance(key, NamedTupleKey):
                kinds[_name(path[:i])] = key.tuple_name
        name = _name(path)
        if name in named:
            raise ValueError(
                f'Two leaves of the tree would have the name {name!r} in the file. Rename one of the keys that lead '
                f'there: keys of one dict must differ as strings.'
            )
        named[name] = x
    return named, kinds


def _name(path: KeyPath) -> str:
    return '/'.join(map(_part, path))


def _part(key: Any) -> str:
    if isinstance(key, NamedTupleKey):
        return key.name
    text = str(key.key if isinstance(key, DictKey) else key.idx).replace('%', '%25').replace('/', '%2F')
    # safetensors keeps this name for itself.
    return '%5F_metadata__' if text == '__metadata__' else text


def _words(x: Any) -> str:
    """What has to be equal in the file and in the tree that is expected."""
    if isinstance(x, torch.Tensor):
        return f'{x.dtype} of shape {tuple(x.shape)}'
    return 'None' if x is None else f'a Python {type(x).__name__}'


# -- leaves ----------------------------------------------------------------------------------------


def _describe(name: str, x: Any) -> tuple[list[str], torch.Tensor | None]:
    """How the manifest records a leaf, and the tensor to be written for it."""
    if x is None:
        return ['None'], None
    if type(x).__name__ in _PLAIN and type(x).__module__ == 'builtins':
        return [type(x).__name__, str(x)], None
    if isinstance(x, torch.Generator):
        return ['Generator'], x.get_state()
    if type(x) not in (torch.Tensor, torch.nn.Parameter):
        remedy = 'convert it by torch.as_tensor, or leave it out'
        if isinstance(x, torch.Tensor):
            remedy = 'save the plain tensor in it, or use torch.distributed.checkpoint for distributed ones'
        raise TypeError(f'The leaf {name!r} is a {type(x).__name__}, which cannot be saved; {remedy}.')
    if x.layout is not torch.strided or x.is_quantized or x.is_meta or x.dtype is torch.complex32:
        kind = 'on the meta device' if x.is_meta else f'{x.dtype}, {x.layout}'
        raise TypeError(f'The leaf {name!r} is a tensor that cannot be saved ({kind}); make it dense and plain first.')
    dense = x.detach().cpu().resolve_conj().resolve_neg()
    if x.dtype is torch.complex128:
        return ['complex128'], torch.view_as_real(dense).contiguous()
    return ['tensor'], dense.contiguous()


def _memory(x: Any) -> Any:
    """Equal for tensors that are one and the same memory, read in the same way."""
    if not isinstance(x, torch.Tensor) or x.numel() == 0:
        return id(x)
    return x.device, x.data_ptr(), x.shape, x.stride(), x.dtype, x.is_conj(), x.is_neg()


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, none of which shares a storage with another: not all versions of safetensors write those."""
    used: set[int] = set()
    apart = {}
    for name, x in tensors.items():
        storage = x.untyped_storage().data_ptr()
        apart[name] = x.clone() if storage in used else x
        used.add(storage)
    return apart


def _restore(record: list[str], name: str, leaves: dict[str, Any]) -> Any:
    """A leaf as the file has it."""
    kind, *text = record
    if kind == 'None':
        return None
    if kind in _PLAIN:
        return _PLAIN[kind](*text)
    if kind == 'tied':
        return leaves[text[0]]
    data = leaves[name]
    if kind == 'Generator':
        return _generator(data, 'cpu')
    return torch.view_as_complex(data) if kind == 'complex128' else data


def _place(x: Any, like: Any) -> Any:
    """A loaded leaf on the device, and of the role, of the one that it stands for."""
    if isinstance(x, torch.Generator):
        return _generator(x.get_state(), like.device)
    if not isinstance(x, torch.Tensor):
        return x
    x = x if like.is_meta else x.to(like.device)
    if isinstance(like, torch.nn.Parameter):
        return torch.nn.Parameter(x, requires_grad=like.requires_grad)
    return x.requires_grad_(like.requires_grad)


# -- files -----------------------------------------------------------------------------------------


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """The kinds of nodes and the leaves in a file, by name."""
    package = _safetensors()
    name = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'There is no file {name!r}.')
    try:
        with package.safe_open(path, 'pt') as file:
            metadata = file.metadata() or {}
            # Copies, so that the file can be changed while they are in use.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (it is no dict)
        text = metadata.get(_METADATA)
        manifest = None if text is None else json.loads(text)
    except (package.SafetensorError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise ValueError(f'{name!r} is damaged, or no safetensors file: {error}') from error
    if manifest is None:
        raise ValueError(
            f'{name!r} was not written by torchopt.tree.save: it has no record of a tree. Read its tensors by '
            f'safetensors.torch.load_file.'
        )
    version = manifest.get('version') if isinstance(manifest, dict) else None
    if type(version) is int and version != VERSION:
        raise ValueError(
            f'{name!r} has version {version} of the format, this torchopt reads version {VERSION}. Load it with the '
            f'torchopt that wrote it, or a newer one.'
        )
    try:
        if manifest.pop('checksum') != _checksum(manifest, tensors):
            raise ValueError('the checksum does not fit the content')
        records = manifest['leaves']
        # What is tied refers to a leaf that is not.
        for key in sorted(records, key=lambda key: records[key][0] == 'tied'):
            tensors[key] = _restore(records[key], key, tensors)
        return dict(manifest['kinds']), {key: tensors[key] for key in records}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise ValueError(f'{name!r} is damaged: {error}. Load another copy of it.') from error


def _checksum(manifest: dict[str, Any], tensors: dict[str, torch.Tensor]) -> int:
    total = zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
    for name in sorted(tensors):
        x = tensors[name]
        total = zlib.crc32(f'{name} {x.dtype} {tuple(x.shape)}'.encode(), total)
        total = zlib.crc32(x.reshape(-1).view(torch.uint8).numpy().data, total)
    return total


def _generator(state: torch.Tensor, device: torch.device | str) -> torch.Generator:
    made = torch.Generator(device)
    made.set_state(state)
    return made


def _to_disk(path: str) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    if os.path.isdir(path):
        if os.name != 'posix':  # elsewhere folders cannot be opened
            return
        flags = os.O_RDONLY
    else:
        flags = os.O_RDWR
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
