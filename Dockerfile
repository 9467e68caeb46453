# R-CNN for MindSpore. On CPU, the default:
#     docker build -t rcnn:cpu .
# On Ascend, from an image that has Python 3.11 and MindSpore 2.8 for it:
#     docker build -t rcnn:ascend --build-arg FROM_IMAGE_NAME=ascend-mindspore .
ARG FROM_IMAGE_NAME=python:3.11-slim-bookworm
FROM ${FROM_IMAGE_NAME}

WORKDIR /opt/rcnn
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# the launchers use this interpreter as it is, instead of making a virtual environment
ENV PYTHON=python3

# what changes seldom comes first; a compiler for the C++ operators
# hadolint ignore=DL3008
RUN if command -v apt-get; then \
        apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*; \
    fi
COPY requirements.txt ./
COPY scripts/common.sh scripts/docker_install.sh scripts/
RUN bash scripts/docker_install.sh packages
COPY . .
RUN bash scripts/docker_install.sh operators

CMD ["/bin/bash"]
