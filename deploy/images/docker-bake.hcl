# docker buildx bake -f deploy/images/docker-bake.hcl        all images for this machine's kind, from the repository's root
# PREFIX=registry.example/ai/ TAG=0.1.0 docker buildx bake -f deploy/images/docker-bake.hcl --push release

variable "PREFIX" {
  default = ""
}

variable "TAG" {
  default = "0.1.0"
}

group "default" {
  targets = ["server", "sidecar", "worker"]
}

group "release" {
  targets = ["server-release", "sidecar-release", "worker-release", "worker-cuda"]
}

target "common" {
  context    = "."
  dockerfile = "deploy/images/Dockerfile"
  labels = {
    "org.opencontainers.image.version" = TAG
  }
}

target "every-machine" {
  platforms = ["linux/amd64", "linux/arm64"]
}

target "server" {
  inherits = ["common"]
  target   = "server"
  tags     = ["${PREFIX}tms/server:${TAG}"]
}

target "sidecar" {
  inherits = ["common"]
  target   = "sidecar"
  tags     = ["${PREFIX}tms/sidecar:${TAG}"]
}

target "worker" {
  inherits = ["common"]
  target   = "worker"
  tags     = ["${PREFIX}tms/worker:${TAG}"]
}

target "worker-cuda" {
  inherits  = ["common"]
  target    = "worker-cuda"
  tags      = ["${PREFIX}tms/worker:${TAG}-cuda"]
  platforms = ["linux/amd64"]
}

target "server-release" {
  inherits = ["server", "every-machine"]
}

target "sidecar-release" {
  inherits = ["sidecar", "every-machine"]
}

target "worker-release" {
  inherits = ["worker", "every-machine"]
}
