"""`python -m vsrn`, which `torchrun -m vsrn` needs too."""

from vsrn.cli import main

if __name__ == "__main__":
    main()
