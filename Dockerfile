# Understudy in a container: built in one stage, run in another, as a user without rights.
FROM python:3.13-slim-bookworm AS build
WORKDIR /build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/understudy
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN /opt/understudy/bin/pip install --require-hashes -r requirements/build.txt -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY generated generated
COPY server server
RUN /opt/understudy/bin/pip install --no-deps --no-build-isolation .

FROM python:3.13-slim-bookworm
RUN groupadd --gid 10001 understudy \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin understudy \
 && install --directory --owner=understudy --group=understudy --mode=0700 /data
COPY --from=build /opt/understudy /opt/understudy
ENV PATH=/opt/understudy/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    UNDERSTUDY_LISTEN=0.0.0.0:6334 \
    UNDERSTUDY_ADMIN=127.0.0.1:6335 \
    UNDERSTUDY_VECTORSTORE_FALLBACK_LOCAL_PATH=/data/store \
    UNDERSTUDY_VECTORSTORE_FALLBACK_WAL_PATH=/data/wal
USER understudy
WORKDIR /data
VOLUME /data
EXPOSE 6334
STOPSIGNAL SIGTERM
# Inside the container the admin port is always on its loopback, whatever the port outside.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:6335/readyz', timeout=2)"]
ENTRYPOINT ["understudy"]
CMD ["serve"]
