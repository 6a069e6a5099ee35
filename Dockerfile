# The package with its studio, for a CPU or, with the NVIDIA container runtime, a graphics card.
#   docker build -t anomalydiffusion .
#   docker run --rm -v "$PWD:/work" anomalydiffusion check DATA
#   docker run --rm -v "$PWD:/work" -p 7860:7860 anomalydiffusion studio RUN --data DATA --host 0.0.0.0 --auth USER:PASSWORD
FROM python:3.12-slim
RUN useradd --create-home --uid 1000 engineer
COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN pip install --no-cache-dir '/source[studio]' && rm -r /source
USER 1000
WORKDIR /work
EXPOSE 7860
ENTRYPOINT ["anomalydiffusion"]
CMD ["--help"]
