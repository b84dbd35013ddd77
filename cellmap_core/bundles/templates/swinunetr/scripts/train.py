"""Train this bundle: ``python train.py run --config_file=configs/hyper_parameters.yaml``."""

import sys

from cellmap_core.training.entry import end, main

if __name__ == "__main__":
    end(main(sys.argv[1:]))
