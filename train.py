"""Train, validate and export: `python train.py fit --config configs/tiny.yaml --config configs/routers/path_b4.yaml`"""

from pathmoe.training.cli import main

if __name__ == "__main__":
    main()
