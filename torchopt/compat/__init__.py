# SPDX-License-Identifier: Apache-2.0
"""Other libraries by their own names: code written for them changes one line of imports.

Names, signatures, defaults and numbers are those of the library.  The rules themselves are in the modules of torchopt;
here is only what differs.
"""

from torchopt.compat import jaxopt, optax

__all__ = ['jaxopt', 'optax']
