# R-CNN for MindSpore. On CPU, the default:
#     docker build -t rcnn:cpu .
# On Ascend, from an image that has Python 3.11 and MindSpore 2.8 for it; by its digest, NAME@sha256:..., it is the same
# image every time:
#     docker build -t rcnn:ascend --build-arg FROM_IMAGE_NAME=ascend-mindspore:2.8.0 .
ARG FROM_IMAGE_NAME=python:3.11.14-slim-bookworm
FROM ${FROM_IMAGE_NAME}

WORKDIR /opt/rcnn
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# the launchers use this interpreter as it is, instead of making a virtual environment
ENV PYTHON=python3

# what changes seldom comes first; a compiler for the C++ operators, and what OpenCV loads
# hadolint ignore=DL3008
RUN if command -v apt-get; then \
        apt-get update && \
        apt-get install --yes --no-install-recommends g++ libgl1 libglib2.0-0 && \
        rm -rf /var/lib/apt/lists/*; \
    fi
COPY requirements.txt requirements.lock ./
COPY scripts/common.sh scripts/docker_install.sh scripts/
RUN bash scripts/docker_install.sh packages
COPY . .
RUN bash scripts/docker_install.sh operators

# Any user's: code that belongs to root, in folders where each may make files of its own. docker_start.sh names the user
# who calls it; without one it is this.
RUN useradd --uid 10001 --create-home rcnn && chmod 1777 /opt/rcnn /home/rcnn
ENV HOME=/home/rcnn USER=rcnn
USER 10001

CMD ["/bin/bash"]
