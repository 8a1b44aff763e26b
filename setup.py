"""Packaging. Each bound carries its reason; requirements.txt pins the versions the tests ran with."""

from setuptools import find_packages, setup

CORE = [
    "jax>=0.10.1",  # jax.sharding.AxisType.Auto with jit over a Mesh; no pmap
    "flax>=0.12.4",  # Linen with the jax above
    "optax>=0.2.6",  # warmup_cosine_decay_schedule, adamw with a mask
    "orbax-checkpoint>=0.12.0",  # the v1 API (checkpointables, preservation policies)
    "ml_collections>=1.1.0",  # sys_argv in DEFINE_config_dict
    "clu>=0.0.12",  # metric writers for TensorBoard
    "numpy>=2.0",  # one promotion rule on both Python lanes
    "jaxtyping>=0.3.0",  # shapes in signatures
    "tensorflow-datasets>=4.9.9",  # folder_dataset.write_metadata with array_record
    "importlib_resources>=6.0",  # tensorflow-datasets needs it and does not declare it
    "array_record>=0.8.3",  # random access by batches of indices, wheels for both lanes
    "protobuf>=6.31",  # what TensorFlow 2.21 and tensorflow-datasets generated their messages with
    "scikit-learn>=1.6",  # reference metrics and probes, t-SNE
    "scipy>=1.13",  # its LAPACK is JAX's on CPU, and numpy 2 needs this one
    "threadpoolctl>=3.1",  # holds that LAPACK to one thread in the probe; scikit-learn's own bound
    "joblib>=1.3",  # parallel_config, for scikit-learn on every core in `bench probe`
    "numba>=0.64",  # numpy 2.4; compiles the bootstrap of average precision (numerics/ranking.py)
    "matplotlib>=3.10",  # constrained layout with figure legends outside
    "Jinja2>=3.1",  # autoescape and StrictUndefined for the page
    "fsspec>=2024.6",  # filecache with check_files: prepared sets at gs:// and s3://
    "tqdm>=4.66",  # progress on terminals
    "PyYAML>=6.0",  # descriptions of scene folders
]

EXTRAS = {
    # tf.data reads ahead for training; everything else runs without it.
    "input": ["tensorflow-cpu>=2.20; platform_machine == 'x86_64'", "tensorflow>=2.20; platform_machine != 'x86_64'"],
    # rasterio reads GeoTIFF by window, 1.4 has wheels for numpy 2; h5py reads So2Sat; pyarrow the metadata of
    # BigEarthNet v2, lmdb and safetensors its LMDB form (uint16 tensors since safetensors 0.5).
    "geo": ["rasterio>=1.4", "h5py>=3.11", "pyarrow>=15", "lmdb>=1.5", "safetensors>=0.5"],
    "gcs": ["gcsfs>=2024.6"],  # workdirs and prepared sets at gs://, as fsspec
    "s3": ["s3fs>=2024.6"],  # prepared sets at s3://
    "beam": ["apache-beam>=2.70"],  # first with protobuf 6, which TensorFlow 2.21 accepts
    "tpu": ["jax[tpu]>=0.10.1"],
    "cuda": ["jax[cuda13]>=0.10.1"],
    "torch": ["torch>=2.6", "safetensors>=0.5"],  # the PyTorch twin
    "dev": [
        "pytest>=8.3",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",  # two processes of tests
        "hypothesis>=6.100",
        "beartype>=0.20",  # checks jaxtyping's shapes in tests
        "ruff>=0.12",
        "import-linter>=2.1",
        "mypy>=1.18",  # PEP 695 generics in the stubs of numpy 2.4
        "types-PyYAML>=6.0",
        "gcsfs>=2024.6",
        "gcp-storage-emulator>=2022.6",  # a run in a workdir at gs://, in the slow tests
        "kubernetes-validate>=1.33",  # the schema of the job inside a JobSet
    ],
}

setup(
    name="fusionx-jax",
    version="0.1.0",
    description="Self-supervised fusion of SAR and optical satellite images in JAX, evaluated at few labels",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["fusionx_jax", "fusionx_jax.*"]),
    package_data={"fusionx_jax.report": ["templates/*"], "fusionx_jax.pretrained": ["**/*"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["fusionx = fusionx_jax.__main__:main"]},
)
