# SPDX-License-Identifier: Apache-2.0
"""Saving and loading trees as safetensors files, a common format that cannot contain code.

The names of the tensors are the paths of the leaves, such as ``0/mu/encoder/weight``.  The metadata holds, as JSON, all
else (numbers, ``None``, the classes of named tuples, tensors that share memory) and a checksum of the whole content.
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

from torchopt.kinds import kind_of, with_article
from torchopt.tree.paths import flatten_with_keys
from torchopt.tree.registry import structure, unflatten
from torchopt.tree.state import DictKey, NamedTupleKey

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from torchopt.tree.state import KeyPath

VERSION = 1
_METADATA = 'torchopt'
_SHOWN = 8  # how many differences an error message lists

# How to read Python numbers, which are written as text without loss.
_PLAIN: dict[str, Callable[[str], Any]] = {
    'bool': lambda text: text == 'True',
    'int': int,
    'float': float,
    'complex': complex,
    'str': str,
}


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Write a tree to a safetensors file.

    Writing is atomic: the tree is written to a temporary file in the same folder, flushed to the disk, and then renamed
    to ``path``.

    Leaves may be dense tensors on any device, numbers, strings, ``None`` and :class:`torch.Generator`.  Strided and
    expanded tensors are written densely.  Tensors that share all their memory (tied weights) are written once and are
    tied again when loaded.  complex128, which safetensors lacks, is written as pairs of float64.

    Args:
        path: The file; an existing file is replaced.
        tree: Parameters, an optimizer's state, or both: ``{'params': params, 'state': state}``.

    Raises:
        ImportError: If the package ``safetensors`` is not installed.
        OSError: If the file cannot be written; an existing file then stays unchanged.
        TypeError: If ``path`` is no path, or a leaf has another type, or is a tensor that is sparse, quantized, on the
            meta device or of a subclass; the message names it.
        ValueError: If two leaves would have the same name, such as those at ``0`` and ``'0'`` of a dict.

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
    _check_path(path, 'save(path, tree)')
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
        raise FileNotFoundError(f'There is no folder {folder!r} to save {base!r} in. Create it first.')
    temporary = os.path.join(folder, f'.{base}.{secrets.token_hex(8)}')
    try:
        with open(temporary, 'xb') as file:
            mode = os.stat(target if os.path.exists(target) else file.fileno()).st_mode
        try:
            package.torch.save_file(_apart(tensors), temporary, {_METADATA: json.dumps(manifest)})
        except package.SafetensorError as error:
            raise OSError(f'{os.fspath(path)!r} could not be written: {error}') from error
        os.chmod(temporary, stat.S_IMODE(mode))  # safetensors creates files that only the owner can read
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
        like: A tree with the expected structure, shapes and dtypes, such as ``optimizer.init(params)``.  It is not
            changed.  Its tensors may be on the meta device.

    Returns:
        A new tree with the values of the file.  Each tensor is on the device of the corresponding tensor of ``like``
        (on the CPU for the meta device), and is a parameter or requires grad if that tensor is or does.

    Raises:
        ImportError: If the package ``safetensors`` is not installed.
        FileNotFoundError: If there is no such file.
        TypeError: If ``path`` is no path.
        ValueError: If the file is damaged, has a newer version or was not written by :func:`save`, or if its tree
            differs from ``like``; the message names the leaves that are missing, unexpected, or of another shape,
            dtype or type.

    Example:
        >>> import os, tempfile, torch, torchopt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = os.path.join(folder, 'params.safetensors')
        ...     torchopt.tree.save(file, {'w': torch.ones(2)})
        ...     torchopt.tree.load(file, like={'w': torch.ones(3)})
        Traceback (most recent call last):
            ...
        ValueError: The tree in '...params.safetensors' differs from the expected tree:
          w: expected torch.float32 of shape (3,), the file has torch.float32 of shape (2,)
    """
    _check_path(path, 'load(path, like)')
    found_kinds, found = _read(path)
    named, kinds = _named(like)
    wrong = [
        f'{place or "the root"}: expected {with_article(kind)}, the file has {with_article(found_kinds[place])}'
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
        raise ValueError(f'The tree in {os.fspath(path)!r} differs from the expected tree:{lines}')
    placed: dict[int, Any] = {}  # tensors that are tied in the file stay tied
    for name, x in named.items():
        placed.setdefault(id(found[name]), _place(found[name], x))
    return unflatten(structure(like), [placed[id(found[name])] for name in named])


def _check_path(path: Any, call: str) -> None:
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f'path is {kind_of(path)}; expected a path. The arguments are {call}, in this order.')


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError(
            'Saving and loading trees requires the package safetensors. Run: pip install torchopt[persistence]'
        ) from None
    return safetensors


# -- names -----------------------------------------------------------------------------------------


def _named(tree: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The leaves by name, and the classes of the named tuples by the names of their paths."""
    named: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for path, x in flatten_with_keys(tree):
        for i, key in enumerate(path):
            if isinstance(key, NamedTupleKey):
                kinds[_name(path[:i])] = key.tuple_name
        name = _name(path)
        if name in named:
            raise ValueError(
                f'Two leaves of the tree would have the name {name!r} in the file. Rename one of the keys on their '
                f'paths: keys of one dict must differ as strings.'
            )
        named[name] = x
    return named, kinds


def _name(path: KeyPath) -> str:
    return '/'.join(map(_part, path))


def _part(key: Any) -> str:
    if isinstance(key, NamedTupleKey):
        return key.name
    text = str(key.key if isinstance(key, DictKey) else key.idx).replace('%', '%25').replace('/', '%2F')
    # safetensors reserves this name.
    return '%5F_metadata__' if text == '__metadata__' else text


def _words(x: Any) -> str:
    """Describe a leaf by what must be equal in the file and in the expected tree."""
    if isinstance(x, torch.Tensor):
        return f'{x.dtype} of shape {tuple(x.shape)}'
    return 'None' if x is None else f'a Python {type(x).__name__}'


# -- leaves ----------------------------------------------------------------------------------------


def _describe(name: str, x: Any) -> tuple[list[str], torch.Tensor | None]:
    """The entry of a leaf in the manifest, and the tensor to write for it."""
    if x is None:
        return ['None'], None
    if type(x).__name__ in _PLAIN and type(x).__module__ == 'builtins':
        return [type(x).__name__, str(x)], None
    if isinstance(x, torch.Generator):
        return ['Generator'], x.get_state()
    if type(x) not in (torch.Tensor, torch.nn.Parameter):
        remedy = 'convert it by torch.as_tensor, or leave it out'
        if isinstance(x, torch.Tensor):
            remedy = 'save the plain tensor inside it, or use torch.distributed.checkpoint for distributed tensors'
        raise TypeError(f'The leaf {name!r} is {kind_of(x)}, which cannot be saved; {remedy}.')
    if x.layout is not torch.strided or x.is_quantized or x.is_meta or x.dtype is torch.complex32:
        kind = 'on the meta device' if x.is_meta else f'{x.dtype}, {x.layout}'
        raise TypeError(f'The leaf {name!r} is a tensor that cannot be saved ({kind}); make it dense and plain first.')
    dense = x.detach().cpu().resolve_conj().resolve_neg()
    if x.dtype is torch.complex128:
        return ['complex128'], torch.view_as_real(dense).contiguous()
    return ['tensor'], dense.contiguous()


def _memory(x: Any) -> Any:
    """A key that is equal for tensors with the same memory, shape, strides and dtype."""
    if not isinstance(x, torch.Tensor) or x.numel() == 0:
        return id(x)
    return x.device, x.data_ptr(), x.shape, x.stride(), x.dtype, x.is_conj(), x.is_neg()


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Clone tensors that share a storage with another, which not all versions of safetensors can write."""
    used: set[int] = set()
    apart = {}
    for name, x in tensors.items():
        storage = x.untyped_storage().data_ptr()
        apart[name] = x.clone() if storage in used else x
        used.add(storage)
    return apart


def _restore(record: list[str], name: str, leaves: dict[str, Any]) -> Any:
    """Read a leaf from its entry in the manifest."""
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
    """Move a loaded leaf to the device of ``like``, and make it a parameter or require grad as ``like`` does."""
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
    """The classes of the nodes and the leaves in a file, by name."""
    package = _safetensors()
    name = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'There is no file {name!r}.')
    try:
        with package.safe_open(path, 'pt') as file:
            metadata = file.metadata() or {}
            # Copy, so that the file can change while the tensors are in use.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (it is no dict)
        text = metadata.get(_METADATA)
        manifest = None if text is None else json.loads(text)
    except (package.SafetensorError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise ValueError(f'{name!r} is damaged or not a safetensors file: {error}') from error
    if manifest is None:
        raise ValueError(
            f'{name!r} was not written by torchopt.tree.save: its metadata describes no tree. Read its tensors with '
            f'safetensors.torch.load_file.'
        )
    version = manifest.get('version') if isinstance(manifest, dict) else None
    if type(version) is int and version != VERSION:
        raise ValueError(
            f'{name!r} has version {version} of the format, but this version of torchopt reads version {VERSION}. Load '
            f'it with the version of torchopt that wrote it, or a newer one.'
        )
    try:
        if manifest.pop('checksum') != _checksum(manifest, tensors):
            raise ValueError('the checksum does not match the content')
        records = manifest['leaves']
        # Tied leaves come last, since they refer to leaves that are not tied.
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
        flat = x.as_strided((x.numel(),), (1,))  # of one element, reshape may keep another stride
        total = zlib.crc32(flat.view(torch.uint8).numpy().data, total)
    return total


def _generator(state: torch.Tensor, device: torch.device | str) -> torch.Generator:
    made = torch.Generator(device)
    made.set_state(state)
    return made


def _to_disk(path: str) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    is_folder = os.path.isdir(path)
    if is_folder and os.name != 'posix':  # on other systems, folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
