# SPDX-License-Identifier: Apache-2.0
"""The interfaces of other libraries, so that code written for them needs only another import.

Names, signatures, defaults and numbers are those of the library.  The rules are implemented in the modules of torchopt;
this package contains only the differences.
"""

from torchopt.compat import jaxopt, optax

__all__ = ['jaxopt', 'optax']
