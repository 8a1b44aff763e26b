"""Every key with its default. Other configs start from this one and change a few keys.

Run: `fusionx pretrain --config=configs/default.py --workdir=W --config.dataset=DIR`.
Cost: meant for one accelerator (size "small", 128-pixel tiles); not measured. On two CPU cores use `configs/demo.py`.
"""

from ml_collections import ConfigDict


def get_config(options: str = "") -> ConfigDict:
    """`options` is not used here."""
    del options
    c = ConfigDict()
    c.method = "fusionx"  # name in tables, see fusionx_jax/methods.py
    c.dataset = ""  # directory of a prepared set as `python -m data.prepare` prints it, or several: DIR,DIR
    c.dataset_weights = ()  # sampling weights, one per directory of `dataset`; (): numbers of tiles
    c.verify_records = False  # verify the checksum of every record that is read, at a third of the reading speed
    c.seed = 0
    c.num_steps = 100_000
    c.batch_size = 256  # over all devices
    c.checkpoint_every = 2_000
    c.keep_checkpoints = 3
    c.log_every = 50

    c.modalities = ("s1", "s2")
    # Of tiles at several dates, a training tile is read at the "same" date in all modalities, at "independent" ones, or
    # at the "first" one.
    c.acquisitions = "same"
    # Groups of bands as separate modalities, by name: the sensor, then its bands, e.g. ("s2", "B11", "B12").
    c.band_groups = ConfigDict()
    c.masking = "independent"  # "consistent", "complementary", "dirichlet", "block" or "modality_drop"
    c.masking_options = ConfigDict()  # by masking; those that are not listed have none
    c.masking_options.dirichlet = ConfigDict({"alpha": 1.0})  # concentration (MultiMAE, arXiv 2204.01678, section 3.2)
    c.masking_options.block = ConfigDict({"block_size": 2})  # side of a block, patches
    c.masking_options.modality_drop = ConfigDict({"drop": 0.5})  # probability that an example hides a modality
    c.mask_ratio = 0.75  # a number, or a ConfigDict by modality
    c.mask_schedule = ()  # ((step, mask_ratio), ...): the ratio from that step on
    c.target = "both"  # "normalized", "raw" or "both"
    c.loss_weights = ConfigDict({"s1": 1.0, "s2": 1.0})

    c.model = ConfigDict()
    c.model.family = "fusionx"  # "stacked", "separate", "croma", "contrastive" or "resnet": see configs/methods/
    c.model.size = "small"  # mini, tiny, small, base, large
    c.model.patch_size = 8
    c.model.cross_attention = "both"  # "encoder", "decoder", "both" or "none"
    c.model.decoder_context = "all"  # modalities that a decoder attends to: "all" or the "others"
    # The next two are of family fusionx. experiments/results/README.md compares positions of the fusion block.
    c.model.own_share = (
        0.75  # share of the blocks that each modality has before the fusion block; 0: fusion comes first
    )
    c.model.contrastive = True  # InfoNCE between the modalities, each encoded alone
    c.model.dtype = "float32"  # "bfloat16" on accelerators: parameters, reductions and losses stay float32
    c.model.remat = "none"  # "dots" or "full" recompute activations in the backward pass to save memory

    c.augment = ConfigDict()
    c.augment.crop = 0  # side of a random crop in pixels; 0 keeps whole tiles
    c.augment.flip = True  # random flips and rotations by 90 degrees

    # A random view per modality, for contrastive methods; least_area 1 turns it off.
    c.augment.views = ConfigDict({"least_area": 1.0, "gain": 0.2, "noise": 0.1})

    # InfoNCE between the modalities, and between two masked views of a tile (at two dates where it has them; 0: none).
    c.contrast = ConfigDict({"weight": 1.0, "views": 0.0, "temperature": 0.07})  # temperature: CLIP (arXiv 2103.00020)

    # MAE's recipe (arXiv 2111.06377, table 8): AdamW, b2 .95, decay .05, base rate 1.5e-4 per 256 examples.
    c.optimizer = ConfigDict()
    c.optimizer.learning_rate = 1.5e-4  # per 256 examples
    c.optimizer.warmup_steps = 4_000
    c.optimizer.final_fraction = 0.0  # of the peak rate, at the last step
    c.optimizer.weight_decay = 0.05
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.95
    c.optimizer.clip_norm = 1.0
    c.optimizer.accumulate = 1  # gradient accumulation: slices per batch; InfoNCE is computed per slice

    c.mesh = ConfigDict({"data": -1, "fsdp": 1})
    c.init_from = ""  # workdir or checkpoint of the initial weights
    c.statistics = "checkpoint"  # with init_from: normalize with those of the "checkpoint" or of the "dataset"

    c.label_fractions = (0.01, 0.05, 0.1, 0.5, 1.0)
    c.evaluate = evaluation()
    return c


def evaluation() -> ConfigDict:
    """Evaluation settings, the same for every method and baseline."""
    e = ConfigDict()
    e.tasks = ("multi", "single", "change")  # tasks of the prepared set's contract; those it lacks are passed over
    # linear_probe (regularization by cross-validation inside the labels), linear_probe_validation (by the whole val
    # split), linear_probe_each (on the features of all sensors together and of each alone, side by side),
    # linear_probe_apart (of each alone, side by side), linear_probe_components (principal components, so that all
    # methods are read with the same number of features), knn, random_forest, finetune, scratch; for pixel labels
    # segment_linear, segment_decoder, ridge_cover (shares of the classes). What does not fit a task is passed over.
    e.evaluators = ("linear_probe",)
    e.modalities = ("s1+s2", "s1", "s2")
    e.single_sensor_tasks = (
        "multi",
        "single",
        "pixel",
        "change",
        "change_pixel",
    )  # tasks that are evaluated on single modalities too
    e.zero_fill = False  # True: evaluate single modalities also with the missing ones filled with zeros
    e.seeds = 5  # label subsets per fraction
    e.shots = ()  # few-shot subsets besides label_fractions: labeled tiles per class
    e.score_split = "test"  # "val" for tuning
    e.folds = 0  # 5: the tiles of all splits in 5 folds of whole groups, each scored with the labels of the others
    e.pooling = "mean_std"  # of patch tokens: "mean", "mean_std" or "class"
    e.batch_size = 256
    # L2 regularization added to the mean log-loss on standardized features.
    e.regularization = (3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    e.cv_folds = 5
    e.components = 128  # of linear_probe_components
    e.bootstrap = 1000  # resamples for confidence intervals
    # difference_of_means and change_vector are for labels of change. Also: texture (band statistics and texture) and
    # texture_forest (the same in a random forest).
    e.baselines = ("untrained", "band_statistics", "difference_of_means", "change_vector", "supervised")
    e.statistics = "checkpoint"  # normalize with those of the "checkpoint" or of the "dataset"
    e.any_level = False  # True: also data of other processing levels, such as L2A for weights of L1C
    e.subset_dir = ""  # directory of label subsets (id files) to reuse

    e.forest = ConfigDict({"trees": 500, "min_samples_leaf": 1})  # scikit-learn's usual forest, with more trees
    e.knn = ConfigDict({"k": 20, "temperature": 0.07})  # as DINO (arXiv 2104.14294, section 4.1)

    e.supervised = training()  # training from scratch on labels only

    f = e.finetune = training()  # fine-tuning of the pretrained encoder
    f.learning_rates = (1e-4, 1e-3, 1e-2)
    f.layer_decays = (0.65, 1.0)  # factors of the learning rate per block; 0.65 as MAE's repository for ViT-B
    f.drop_path = 0.1

    # Heads on frozen patch tokens, for pixel labels; nothing is tuned.
    e.segmentation = ConfigDict(
        {"seeds": 3, "batch_size": 32, "num_steps": 400, "learning_rate": 2e-3, "weight_decay": 1e-2}
    )
    return e


def training() -> ConfigDict:
    """Settings for training an encoder on labels."""
    s = ConfigDict()
    s.tasks = ("multi", "single")
    s.seeds = 5
    s.batch_size = 64
    s.num_steps = 2_000  # with all labels; see min_steps
    s.min_steps = 400  # at least; steps grow with the square root of the number of labels
    # Step, rate and layer decay are selected per label subset on this share of its labels; then all of them are used.
    s.holdout = 0.2
    s.eval_every = 50  # steps between evaluations on the labels held out
    s.patience = 10  # evaluations without a lower loss after which a training ends; 0: never
    s.learning_rates = (3e-4, 1e-3, 3e-3)
    s.weight_decay = 0.05
    s.warmup_share = 0.1  # of the steps
    s.layer_decays = (1.0,)
    s.drop_path = 0.0
    s.ema = 0.0  # decay of the moving average of the weights that is evaluated; 0: no average
    s.unfreeze = -1  # number of last blocks that are trained; -1: all, 0: the head only
    return s


def full_size(train_pairs: int, epochs: int, batch_size: int, warmup_epochs: float) -> ConfigDict:
    """Common part of the full-size runs, for several accelerators: steps, dtype, label fractions, fine-tuning."""
    c = get_config()
    c.batch_size = batch_size
    c.num_steps = epochs * train_pairs // batch_size
    c.optimizer.warmup_steps = int(c.num_steps * warmup_epochs / epochs)
    c.checkpoint_every = 1_000
    c.model.dtype = "bfloat16"
    c.label_fractions = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
    c.evaluate.shots = (1, 5, 10, 20, 100)
    c.evaluate.zero_fill = True
    for s in (c.evaluate.finetune, c.evaluate.supervised):
        s.num_steps = 20_000
        s.min_steps = 1_000
        s.eval_every = 500
    return c
