# The image of the jobs. docs/image.md: how to build and push it, its variants and their sizes.

# Python 3.11 on Debian. A digest (docker.io/library/python@sha256:...) pins it.
ARG BASE=docker.io/library/python:3.11-slim
# The build of torch: cuda or cpu.
ARG VARIANT=cuda
# A file made by 'cnn-jobs data prepare', at the root of the checkout, to be included. Empty: none.
ARG DATA_FILE=

# An empty virtual environment, and pip outside of it: the image needs no pip.
FROM ${BASE} AS empty
RUN python -m venv /opt/pip && python -m venv --without-pip /opt/venv
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_PROGRESS_BAR=off

# torch and its CUDA: large, and rarely changed. '--secret id=pip,src=pip.conf' sets another package index; the secret does
# not stay in the image. Wheels only: a build from source runs code that no digest in the lock covers.
FROM empty AS torch
ARG VARIANT
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY k8s/image/torch-${VARIANT}.txt /locks/torch.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    case "$VARIANT" in cpu) set -- --index-url "$TORCH_INDEX";; *) set --;; esac; \
    /opt/pip/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --only-binary=:all: \
        --require-hashes "$@" --requirement /locks/torch.txt

# All other dependencies.
FROM empty AS packages
COPY k8s/image/packages.txt /locks/packages.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/pip/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --only-binary=:all: \
        --require-hashes --requirement /locks/packages.txt

# This package, built by the setuptools of the lock, without a package index.
FROM packages AS wheel
COPY pyproject.toml setup.cfg README.md LICENSE /source/
COPY cnn_jobs /source/cnn_jobs
RUN /opt/pip/bin/pip --python /opt/venv/bin/python wheel --no-cache-dir --no-deps --no-index --no-build-isolation \
    --wheel-dir /wheel /source

FROM empty AS application
COPY --from=wheel /wheel /wheel
RUN /opt/pip/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index /wheel/*.whl

FROM ${BASE} AS image
# The user and the folders that the manifests name: k8s/*-job.yaml.
RUN groupadd --gid 10001 cnn-jobs \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin cnn-jobs \
    && install --directory --owner=10001 --group=10001 /data /state
# What changes least comes first: after a change of the code only the last layer, under 1 MB, is pushed and pulled.
COPY --from=torch /opt/venv /opt/venv
COPY --from=packages /opt/venv /opt/venv
COPY --from=application /opt/venv /opt/venv
# The root file system may be read-only: bytecode is compiled already, and only /tmp and /state are written to. The
# device plugin selects the GPUs, but not the capabilities of the driver. GitPython would warn that there is no git.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    CNN_JOBS_STATE_DIR=/state \
    MLFLOW_DISABLE_TELEMETRY=true \
    GIT_PYTHON_REFRESH=quiet \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /tmp
ARG VARIANT
ARG VERSION=0.1.0
# No tmpfs for /tmp here: buildah 1.28 would leave the image without the folder.
RUN --mount=type=bind,source=k8s/image/check.py,target=/opt/check.py \
    python /opt/check.py "$VERSION" "$VARIANT" && rm -rf /tmp/*
# Last, because they change with every commit. The lineage of a run reads them: there is no .git here.
ARG BASE
ARG GIT_COMMIT=
ARG GIT_DIRTY=
ENV CNN_JOBS_GIT_COMMIT=$GIT_COMMIT CNN_JOBS_GIT_DIRTY=$GIT_DIRTY
LABEL org.opencontainers.image.title="cnn-jobs" \
      org.opencontainers.image.description="Batch training of small CNNs with MLflow tracking" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$GIT_COMMIT" \
      org.opencontainers.image.base.name="$BASE" \
      cnn-jobs.variant="$VARIANT"

# The same image with a data set, which is the default of --data.
FROM image AS image-with-data
ARG DATA_FILE
COPY ${DATA_FILE:-LICENSE} /opt/data/prepared.npz
ENV CNN_JOBS_DATA=/opt/data/prepared.npz
RUN cnn-jobs data verify "$CNN_JOBS_DATA" && rm -rf /tmp/*

# One of the two stages above, not an image of a registry.
# hadolint ignore=DL3006
FROM image${DATA_FILE:+-with-data}
ENTRYPOINT ["cnn-jobs"]
