"""`python -m nested_jax`: the command line."""

import sys

from nested_jax.run.main import main

if __name__ == "__main__":
    sys.exit(main())
