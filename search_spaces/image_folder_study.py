"""The study on a researcher's own pictures: any formats and sizes, thousands of images rather than millions.

Question: Does aligning the mask help on my images?
Command:  python -m study.run --space image_folder_study --data-dir DIR   (DIR holds train/<class>/ and test/<class>/)
          --set model=resnet50, --set image_size=128 or --set epochs=120 where the images ask for it
Jobs:     90, 1,890 epochs: 30 jobs and 630 epochs for each of the three pairs of nets.
Expect:   LTH > permuted > naive at the later rewind epoch, as on CIFAR-10. With fewer than about 500 test images, the
          intervals are wider than the differences: use more seeds.

The recipe is ``short``, adapted to fewer steps: with 5,000 images, 60 epochs are 4,700 steps, and mean learning rate x
weight decay x steps is 1.4, near the paper's 1.6 (see ``search_spaces.recipes``). Rewind epochs are a quarter and a
half of the training. Nets are matched on all training images.
"""

from __future__ import annotations

from search_spaces.recipes import SHORT
from search_spaces.space import SearchSpace

IMAGE_FOLDER_STUDY = SearchSpace(
    name="image_folder_study",
    question="Does aligning the mask help on my own images?",
    dataset=("image_folder",),
    image_size=64,
    width=(1.0,),
    sparsity=(0.8, 0.9),
    rewind_epoch=(15, 30),
    interpolation_points=11,
    **{
        **SHORT,
        "epochs": 60,
        "batch_size": 64,
        "weight_decay": 3e-3,
        "warmup_epochs": 6.0,
        "imp_epochs": 5,
        "match_images": 0,
    },
)
