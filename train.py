"""Train a model: ``python train.py --beta 1``, or under ``torchrun``; ``--help`` explains each option."""

from ibvit.cli import train_main

if __name__ == "__main__":
    train_main()
