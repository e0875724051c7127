"""`python -m hrlib.cli`, which launchers such as torchrun call."""

from . import main

if __name__ == "__main__":
    main()
