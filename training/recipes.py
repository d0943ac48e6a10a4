"""The recipes: named values of the typed configuration. Each docstring has the command and what to expect of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pipeline.augment import Augmentation
from training.config import Config, Network, Optimizer, Parallel


def sample() -> Config:
    """The embedded sample in minutes on two cores: every stage once, nothing to learn about ImageNet.

    python -m preprocess.build_shards && python -m training.run

    Measured: val top-1 0.992 (498 images, 10 classes), n = 1, 2 cores, float32, bca01a3.
    """
    return Config(
        recipe="sample",
        short_side=256,
        epochs=8,
        batch_size=64,
        units="unit-std",
        network=Network(name="alexnet-small", first_kernel=11, first_stride=8, lrn="off", dropout=0.2, init="he"),
        optimizer=Optimizer(learning_rate=0.01, schedule="linear", warmup_epochs=1.0),
    )


def cifar10() -> Config:
    """CIFAR-10 as JPEGs of 32 pixels in class folders, crops of 28, on two cores.

    python -m preprocess.build_shards --input CIFAR10 --output shards-cifar10 --short-side 32
    python -m training.run cifar10 --data shards-cifar10

    Measured on 12,000 train images: val top-1 0.732, top-5 0.981 (2,000 images), ten crops 0.735 and 0.984; n = 1,
    2 cores, float32, bca01a3.
    """
    return _small_images("cifar10", short_side=32, epochs=19, first_stride=1)


def tiny_imagenet() -> Config:
    """Tiny-ImageNet (or some of its classes), 64 pixels in class folders, crops of 56, on two cores.

    python -m preprocess.build_shards --input TINY --output shards-tiny --short-side 64
    python -m training.run tiny-imagenet --data shards-tiny

    Measured on 20 of its classes (10,000 train images): val top-1 0.585, top-5 0.890 (1,000 images), ten crops 0.594
    and 0.898; n = 1, 2 cores, float32, bca01a3.
    """
    return _small_images("tiny-imagenet", short_side=64, epochs=24, first_stride=2)


def _small_images(recipe: str, *, short_side: int, epochs: int, first_stride: int) -> Config:
    return Config(
        recipe=recipe,
        short_side=short_side,
        epochs=epochs,
        batch_size=64,
        units="unit-std",
        label_smoothing=0.1,
        network=Network(
            name="alexnet-small", first_kernel=5, first_stride=first_stride, lrn="off", dropout=0.1, init="he"
        ),
        optimizer=Optimizer(learning_rate=0.03, schedule="linear", warmup_epochs=1.0),
    )


def imagenette() -> Config:
    """Ten classes of ImageNet at full size, the one-tower network of 60 million parameters.

    make imagenette IMAGES=imagenette2-320.tgz

    In bfloat16 where the hardware multiplies it. On one device: at this batch size, several would mostly exchange
    gradients. The rate is as high as these initial weights bear without a warm-up of several epochs.

    Measured: val top-1 0.808, top-5 0.977 (3,925 images, stored at 224 pixels), ten crops 0.815 and 0.980; n = 1,
    2 cores, bfloat16, 58ea1cc.
    """
    return Config(
        recipe="imagenette",
        short_side=256,
        epochs=30,
        batch_size=64,
        compile="auto",
        parallel=Parallel(data=1),
        units="torchvision",
        label_smoothing=0.1,
        network=Network(name="alexnet-owt", init="he-zero", dropout=0.4),
        augmentation=Augmentation(crop_region="whole-image", crop_size="random", smallest_area=0.25, lighting="off"),
        optimizer=Optimizer(
            learning_rate=0.01,
            schedule="cosine",
            warmup_epochs=1.0,
            ema_decay=0.995,
            # He's noise in the first kernels is larger than what they learn, and the usual decay leaves it there.
            layer_weight_decay={"features.0": 0.02},
        ),
    )


def imagenette_2012() -> Config:
    """The same photographs with what the paper of 2012 has: two towers, LRN, overlapping pooling, lighting, dropout.

    make imagenette RECIPE=imagenette-2012 IMAGES=imagenette2-320.tgz

    The rates fall after the same fractions of the training as in run 145 of the released code. Not measured.
    """
    return Config(
        recipe="imagenette-2012",
        short_side=256,
        epochs=30,
        batch_size=32,
        mean="image",
        network=Network(init="code-2012", dropout_form="2012"),
        optimizer=Optimizer(schedule="piecewise", momentum_form="2012", milestones={8: 1e-3, 17: 1e-4, 26: 1e-5}),
    )


def alexnet_paper() -> Config:
    """The network and the training that the text of 2012 describes, two towers, 90 epochs of ImageNet.

    python -m training.run alexnet-paper --data /data/imagenet-shards --parallel.data 1 --parallel.model 2

    In float32, as then; `--precision auto` is faster on a GPU.

    Expected of the paper, not measured by us: 40.7 % top-1 and 18.2 % top-5 error on ILSVRC-2012 val (ten crops).
    """
    return Config(
        recipe="alexnet-paper",
        short_side=256,
        epochs=90,
        precision="float32",
        augmentation=Augmentation(),
        mean="image",
        network=Network(dropout_form="2012"),
        # Section 5 writes the learning rate into the velocity, and changes it by hand.
        optimizer=Optimizer(schedule="plateau", momentum_form="2012"),
    )


def alexnet_2012() -> Config:
    """Run 145 of the log book released with the code of 2012: the paper's single-model network, 91 epochs.

    python -m training.run alexnet-2012 --data /data/imagenet-shards --parallel.data 1 --parallel.model 2

    Expected of its log book, not measured by us: 40.66 % top-1 and 18.21 % top-5 error on ILSVRC-2012 val (ten crops).
    In float32, as then; `--precision auto` is faster on a GPU. Without its LRN (run 148) it is
    `--network.lrn off --network.spatial-norm False`.

    The log book's last line of that run has the biases still at twice the first rate; here they drop once, as in the
    other runs of its kind.
    """
    return Config(
        recipe="alexnet-2012",
        short_side=256,
        epochs=91,
        precision="float32",
        mean="image",
        network=Network(
            lrn="code-2012", order1="lrn-pool-act", spatial_norm=True, init="code-2012", dropout_form="2012"
        ),
        augmentation=Augmentation(granularity="chunk", lighting="code-2012", lighting_off_epoch=67),
        optimizer=Optimizer(
            schedule="piecewise",
            momentum_form="2012",
            bias_lr_scale=2.0,
            bias_decay=False,
            milestones={25: 1e-3, 51: 1e-4, 79: 1e-5},
            bias_milestones={25: 2e-3},
            layer_milestones={"conv1": {67: 1e-5}},
            freeze={"conv1": 72},
        ),
    )


def alexnet_owt() -> Config:
    """The network of "One weird trick" as torchvision has it, with a large batch and a schedule of today: the fast one.

    In bfloat16, channels-last, and compiled on GPUs.

    python -m training.run alexnet-owt --data /data/imagenet-shards

    On four GPUs as that paper has it, convolutions by images and fully connected layers by units:

    python -m training.run alexnet-owt --data /data/imagenet-shards --parallel.data 1 --parallel.model 4

    It sees images as torchvision's weights do, so that these can be evaluated with it:

    python -m training.evaluate --weights alexnet-owt-7be5be79.pth --recipe alexnet-owt --data /data/imagenet-shards

    Expected: torchvision's published weights of this network have 43.48 % top-1 and 20.93 % top-5 error on
    ILSVRC-2012 val (centre crop, its model page). Not measured by us, neither that nor what this recipe reaches: its
    rate is the linear scaling of 0.01 at a batch of 128, and its smoothing, average and crops are untried at this size.
    """
    return Config(
        recipe="alexnet-owt",
        short_side=256,
        epochs=90,
        batch_size=1024,
        precision="bfloat16",
        compile="auto",
        units="torchvision",
        label_smoothing=0.1,
        network=Network(name="alexnet-owt"),
        augmentation=Augmentation(crop_region="whole-image", crop_size="random", lighting="off"),
        optimizer=Optimizer(
            learning_rate=0.08, schedule="cosine", warmup_epochs=5.0, bias_decay=False, ema_decay=0.9999
        ),
    )


def finetune(source: Config | None = None) -> Config:
    """Trained weights on another data set, which may be small.

    python -m training.run finetune --init RUN_ID --data SHARDS

    From a run or a checkpoint, whose configuration is `source`, it takes over network, short side, crop, units and kind
    of mean. The first layer stays as it is, the last one learns ten times as fast as the others, and their rate is a
    third of that of the source, for batches of this size. Without `source` the weights are those of torchvision's
    `alexnet` in a file; its rate was 0.01 for batches of 128 (Krizhevsky 2014).

    python -m training.run finetune --init alexnet-owt-7be5be79.pth --data SHARDS

    Measured from five classes of CIFAR-10 to 100 images of each of five others: val top-1 0.708 (1,000 images), from
    scratch 0.501; n = 3, 2 cores, bfloat16, 0c04dd9. Not measured by us: anything from weights of ImageNet.
    """
    base = source or replace(alexnet_owt(), batch_size=128, optimizer=Optimizer(learning_rate=0.01))
    network, batch_size = base.architecture(), 64
    rate = base.optimizer.learning_rate * batch_size / base.batch_size / (1 if base.recipe == "finetune" else 3)
    return Config(
        recipe="finetune",
        short_side=base.short_side,
        crop=base.crop,
        units=base.units,
        mean=base.mean,
        network=base.network,
        epochs=10,
        batch_size=batch_size,
        label_smoothing=0.1,
        optimizer=Optimizer(
            learning_rate=float(f"{rate:.2g}"),
            schedule="linear",
            warmup_epochs=1.0,
            layer_lr_scale={network.last_layer: 10.0},
            freeze={network.first_layer: 0},
        ),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "sample": sample,
    "cifar10": cifar10,
    "tiny-imagenet": tiny_imagenet,
    "imagenette": imagenette,
    "imagenette-2012": imagenette_2012,
    "alexnet-paper": alexnet_paper,
    "alexnet-2012": alexnet_2012,
    "alexnet-owt": alexnet_owt,
    "finetune": finetune,
}
