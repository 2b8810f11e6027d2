# The package in a container. Build it, then run the quickstart, or any other command of online-aug:
#
#   docker build -t online-aug .
#   docker run --rm --shm-size=8g --user "$(id -u):$(id -g)" -v "$PWD:/work" online-aug
#   docker run --rm --shm-size=8g --user "$(id -u):$(id -g)" -v "$PWD:/work" --gpus all online-aug train my.yaml
#
# The folder you are in is /work: recipes, photos and runs are read and written there.
FROM python:3.11-slim-bookworm

WORKDIR /opt/online-aug
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY cache cache
COPY online_aug online_aug
RUN pip install --no-cache-dir -c constraints.txt .

# Libraries keep their caches below HOME, which any user must be able to write.
ENV HOME=/tmp
WORKDIR /work
RUN chmod 1777 /work
USER 1000:1000
ENTRYPOINT ["online-aug"]
CMD ["compare", "quickstart", "--seeds", "1"]
