"""``python -m skillpack_tools``, and ``python -m tools`` from a checkout."""

from .cli import main

if __name__ == "__main__":
    main()
