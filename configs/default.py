"""Every key with its default. Other configs start from this one and change what they are about.

Run: `fusionx pretrain --config=configs/default.py --workdir=W --config.dataset=DIR`. With size "small" and 128-pixel
tiles this is a run for one accelerator; on two CPU cores use `configs/demo.py`.
"""

from ml_collections import ConfigDict


def get_config(options: str = "") -> ConfigDict:
    """`options` is not used here."""
    del options
    c = ConfigDict()
    c.method = "fusionx"  # what tables call it
    c.dataset = ""  # directory of a prepared set as `python -m data.prepare` prints it, or several: DIR,DIR
    c.dataset_weights = ()  # for several sets, DIR,DIR in `dataset`: a weight each; () counts tiles
    c.seed = 0
    c.num_steps = 100_000
    c.batch_size = 256  # over all devices
    c.checkpoint_every = 2_000
    c.keep_checkpoints = 3
    c.log_every = 50

    c.modalities = ("s1", "s2")
    # Groups of bands as modalities of their own, by name: the sensor, then its bands, e.g. ("s2", "B11", "B12").
    c.band_groups = ConfigDict()
    c.masking = "independent"  # "consistent", "complementary", "dirichlet", "block" or "modality_drop"
    c.masking_options = ConfigDict()  # by masking; those that are not listed have none
    c.masking_options.dirichlet = ConfigDict({"alpha": 1.0})  # concentration (MultiMAE, arXiv 2204.01678, section 3.2)
    c.masking_options.block = ConfigDict({"block_size": 2})  # side of a block, patches
    c.masking_options.modality_drop = ConfigDict({"drop": 0.5})  # probability that an example hides a modality
    c.mask_ratio = 0.75  # a number, or a ConfigDict by modality
    c.mask_schedule = ()  # ((step, mask_ratio), ...): each holds from its step on
    c.target = "both"  # "normalized", "raw" or "both"
    c.loss_weights = ConfigDict({"s1": 1.0, "s2": 1.0})

    c.model = ConfigDict()
    c.model.family = "fusionx"  # stacked, croma, contrastive, resnet; configs/methods/ sets what each needs
    c.model.size = "small"  # mini, tiny, small, base, large
    c.model.patch_size = 8
    c.model.cross_attention = "both"  # "encoder", "decoder", "both" or "none"
    c.model.decoder_context = "all"  # or "others": whose tokens a modality's decoder attends to
    # The next two are of family fusionx. Where to fuse was compared in experiments/results: late, but not at the end.
    c.model.own_share = 0.75  # of the joint blocks, made each sensor's own before the fusion block; 0 fuses at once
    c.model.contrastive = True  # also contrast the sensors, each encoded alone
    c.model.dtype = "float32"  # "bfloat16" on accelerators: parameters, reductions and losses stay float32
    c.model.remat = "none"  # "dots", "full": compute blocks again in the backward pass, for less memory

    c.augment = ConfigDict()
    c.augment.crop = 0  # side of a random crop in pixels; 0 keeps whole tiles
    c.augment.flip = True  # one of the square's eight symmetries

    # Each sensor its own random view, for contrastive methods: off while least_area is 1.
    c.augment.views = ConfigDict({"least_area": 1.0, "gain": 0.2, "noise": 0.1})

    c.contrast = ConfigDict({"weight": 1.0, "temperature": 0.07})  # InfoNCE, where the network has it

    # MAE's recipe (arXiv 2111.06377, table 8): AdamW, b2 .95, decay .05, base rate 1.5e-4 per 256 examples.
    c.optimizer = ConfigDict()
    c.optimizer.learning_rate = 1.5e-4  # per 256 examples
    c.optimizer.warmup_steps = 4_000
    c.optimizer.final_fraction = 0.0  # of the peak rate, at the last step
    c.optimizer.weight_decay = 0.05
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.95
    c.optimizer.clip_norm = 1.0
    c.optimizer.accumulate = 1  # parts a batch is cut into, one after the other; contrast sees a part at a time

    c.mesh = ConfigDict({"data": -1, "fsdp": 1})
    c.init_from = ""  # workdir or checkpoint whose weights to start from
    c.statistics = "checkpoint"  # with init_from: normalize by the "checkpoint"'s statistics or the "dataset"'s

    c.label_fractions = (0.01, 0.05, 0.1, 0.5, 1.0)
    c.evaluate = evaluation()
    return c


def evaluation() -> ConfigDict:
    """How representations are judged; the same for every method and baseline."""
    e = ConfigDict()
    e.tasks = ("multi", "single")  # tasks of the prepared set's contract; those it lacks are passed over
    # linear_probe, linear_probe_each (on the features of all sensors together and of each alone, side by side), knn,
    # finetune, scratch; for pixel labels segment_linear, segment_decoder, ridge_cover (shares of the classes).
    # What does not fit a task is passed over.
    e.evaluators = ("linear_probe",)
    e.modalities = ("s1+s2", "s1", "s2")
    e.single_sensor_tasks = ("multi", "single", "pixel")  # of the tasks, those also judged on one sensor alone
    e.zero_fill = False  # True: single sensors also with the others filled with zeros instead of left out
    e.seeds = 5  # label subsets per fraction
    e.shots = ()  # beside label_fractions: so many labeled tiles of every class
    e.score_split = "test"  # "val" while choosing settings
    e.pooling = "mean_std"  # of patch tokens: "mean", "mean_std" or "class"
    e.batch_size = 256
    # Ridge strengths of the mean log-loss on standardized features.
    e.regularization = (3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    e.selection = ("cv",)  # choose it by "cv" inside the labels; "validation" uses the whole val split
    e.cv_folds = 5
    e.bootstrap = 1000  # resamples for intervals
    e.baselines = ("untrained", "band_statistics", "supervised")
    e.statistics = "checkpoint"  # normalize by the "checkpoint"'s statistics or the "dataset"'s
    e.subset_dir = ""  # reuse label subsets (id files) from here

    e.knn = ConfigDict({"k": 20, "temperature": 0.07})  # DINO's (arXiv 2104.14294, section 4.1)

    e.supervised = training()  # the network trained from scratch on the labels only

    f = e.finetune = training()  # the pretrained encoder trained on
    f.learning_rates = (1e-4, 3e-4)
    f.layer_decay = 0.75  # of the rate, from block to block downwards (MAE, arXiv 2111.06377, table 9)
    f.drop_path = 0.1

    # Heads on frozen patch tokens, for pixel labels; the same for every method, nothing chosen.
    e.segmentation = ConfigDict(
        {"seeds": 3, "batch_size": 32, "num_steps": 400, "learning_rate": 2e-3, "weight_decay": 1e-2}
    )
    return e


def training() -> ConfigDict:
    """Training of a whole encoder on labels."""
    s = ConfigDict()
    s.tasks = ("multi", "single")
    s.seeds = 5
    s.batch_size = 64
    s.num_steps = 2_000  # at the full label set; see min_steps
    s.min_steps = 400  # at the smallest fraction: steps grow with the square root of the labels
    s.eval_every = 50  # selection on the validation split
    s.val_tiles = 0  # how many of them; 0 takes all
    s.learning_rates = (3e-4, 1e-3)  # chosen on the validation split, per fraction and seed
    s.weight_decay = 0.05
    s.warmup_share = 0.1  # of the steps
    s.layer_decay = 1.0
    s.drop_path = 0.0
    s.ema = 0.0  # decay of a moving average of the weights, scored instead of them; 0: none
    s.unfreeze = -1  # how many of the last blocks are trained; -1 all, 0 the head alone
    return s
