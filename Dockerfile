# twinflow in a container: `docker build --target cpu .` or `--target cuda .`, both for linux/amd64.
#
# Packages are installed from docker/requirements.txt alone, each with its hash. torch is not in it:
# its build is the choice of whoever builds the image. By default it is the registry's, which brings
# CUDA; for a small CPU image give the index that PyTorch's install page names as TORCH_INDEX_URL.
# PYTHON_IMAGE takes a digest where a tag is not exact enough: python:3.11-slim-bookworm@sha256:...

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH=/opt/twinflow/bin:$PATH \
    HOME=/home/twinflow
# A user that Kubernetes can tell is not root; the chart runs as the same one.
RUN groupadd --gid 10001 twinflow \
    && useradd --uid 10001 --gid 10001 --create-home --home-dir /home/twinflow --shell /bin/bash twinflow

FROM base AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX_URL=
WORKDIR /build
RUN python -m venv /opt/twinflow
# TORCH names the version.
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$TORCH"
COPY docker/requirements.txt docker/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --only-binary :all: --require-hashes --requirement docker/requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY cluster cluster
COPY workers workers
COPY runtime runtime
COPY parallel parallel
COPY protos protos
# hatchling, which builds the wheel, is among the requirements: nothing unpinned is fetched for it.
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && pip check

FROM base AS cpu
COPY --from=build /opt/twinflow /opt/twinflow
USER 10001:10001
WORKDIR /home/twinflow
EXPOSE 8000 50051
STOPSIGNAL SIGTERM
ENTRYPOINT ["twinflow"]
CMD ["--help"]

FROM base AS cuda
# Triton compiles what launches its kernels. The driver is the host's, by the NVIDIA runtime.
# Debian keeps no older versions that could be pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build /opt/twinflow /opt/twinflow
USER 10001:10001
WORKDIR /home/twinflow
EXPOSE 8000 50051
STOPSIGNAL SIGTERM
ENTRYPOINT ["twinflow"]
CMD ["--help"]
