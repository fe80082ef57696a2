# syntax=docker/dockerfile:1
# megatron_rapo on GPUs: NVIDIA's PyTorch image for CUDA, cuDNN, NCCL and its compiler, and a Python of our own in it.
#
#   docker build -t megatron_rapo .
#   enroot import -o megatron_rapo.sqsh dockerd://megatron_rapo      # then: RAPO_CONTAINER=$PWD/megatron_rapo.sqsh
#
# The image's own torch is a build between releases, which vLLM's wheels do not load with; so torch is PyTorch's, of the
# same CUDA 13.0, and Transformer Engine's extension is compiled against it. Needs driver 580 or newer. Nobody has built
# this yet; what the build prints last is what `python -m megatron_rapo doctor` says of it.
FROM nvcr.io/nvidia/pytorch:25.10-py3

ARG TRANSFORMER_ENGINE=2.11.0
ARG MAX_JOBS=8
# The image holds pip to its own versions.
ENV PIP_CONSTRAINT="" PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

RUN python3 -m venv /opt/rapo
ENV PATH=/opt/rapo/bin:$PATH VIRTUAL_ENV=/opt/rapo

COPY requirements-gpu.txt /tmp/
RUN pip install --no-deps -r /tmp/requirements-gpu.txt

RUN pip install --no-deps transformer-engine==${TRANSFORMER_ENGINE} transformer-engine-cu13==${TRANSFORMER_ENGINE} \
    && NVTE_FRAMEWORK=pytorch MAX_JOBS=${MAX_JOBS} \
       pip install --no-deps --no-build-isolation transformer-engine-torch==${TRANSFORMER_ENGINE}

COPY pyproject.toml setup.py README.md LICENSE /opt/megatron_rapo/
COPY megatron_rapo /opt/megatron_rapo/megatron_rapo
RUN pip install --no-deps /opt/megatron_rapo && python -m megatron_rapo doctor
