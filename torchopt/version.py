# SPDX-License-Identifier: Apache-2.0
"""The version of the package.

The build reads ``__version__`` from this file as text, so it must stay a plain string literal.
"""

from __future__ import annotations

__all__ = ['__author__', '__license__', '__release__', '__version__']

#: The version, after PEP 440.
__version__ = '0.8.0.dev0'

#: The SPDX identifier of the licence.
__license__ = 'Apache-2.0'

#: The authors of the package.
__author__ = 'The torchopt authors'

#: Whether this is a published release, not a development version.
__release__ = not any(mark in __version__ for mark in ('dev', 'a', 'b', 'rc'))
