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

# what changes seldom comes first
COPY requirements.txt ./
COPY scripts/common.sh scripts/docker_install.sh scripts/
RUN bash scripts/docker_install.sh packages
COPY . .
RUN bash scripts/docker_install.sh operators

CMD ["/bin/bash"]
