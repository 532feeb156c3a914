"""Decides how options and lease.yaml make a request: what is given as an option wins, labels key by key."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import TypeVar

from google.protobuf import duration_pb2

from protos.tms.v1 import common_pb2, lease_pb2
from tmsctl import client, errors, leasefile, leaseoptions, scaling, values

Value = TypeVar("Value")
Result = TypeVar("Result")


def build(
    options: leaseoptions.LeaseOptions, worker: leaseoptions.WorkerOptions, namespace: str | None
) -> lease_pb2.CreateLeaseRequest:
    """The request, complete with a request id; CliError names the option or key that is wrong."""
    request = leasefile.load(options.file) if options.file else lease_pb2.CreateLeaseRequest()
    request.namespace = namespace or request.namespace
    request.name = options.name or request.name
    request.parent_id = options.parent or request.parent_id
    request.request_id = options.request_id or request.request_id or client.new_request_id()
    if options.priority is not None:
        request.priority = within_32_bits("--priority", options.priority)
    request.labels.update(parsed("--label", options.label or (), values.parse_labels))
    _models(request, options)
    _placement(request, options, worker)
    _scaling(request, options)
    _times(request, options)
    _sharing(request, options)
    return request


def parsed(option: str, given: Value, parser: Callable[[Value], Result]) -> Result:
    """What `parser` answers; CliError that names the option when it refuses."""
    try:
        return parser(given)
    except ValueError as problem:
        raise wrong(option, str(problem)) from None


def duration(option: str, text: str) -> duration_pb2.Duration:
    """An option's duration."""
    span = duration_pb2.Duration()
    span.FromTimedelta(parsed(option, text, values.parse_duration))
    return span


def within_32_bits(option: str, number: int) -> int:
    """The number; CliError when no field could hold it."""
    if not -(2**31) <= number < 2**31:
        raise wrong(option, "write a whole number of at most 32 bits")
    return number


def wrong(option: str, message: str, remedy: str = "") -> errors.CliError:
    """The command line is wrong."""
    return errors.CliError(message, code=errors.Exit.USAGE, field=option, remedy=remedy)


def describe(worker: common_pb2.WorkerSpec, options: leaseoptions.WorkerOptions) -> None:
    """Writes what the options say of a worker into it; the rest stays."""
    if options.command and options.image:
        raise wrong("--image", "a worker has a command or an image, not both")
    if options.command:
        worker.command = options.command
    if options.image:
        worker.image = options.image
    if options.profile is not None:
        worker.profile = options.profile
    if options.gpus is not None:
        worker.resources.gpus = within_32_bits("--gpus", options.gpus)
    if options.cpus is not None:
        worker.resources.cpu_milli = parsed("--cpus", options.cpus, values.parse_cpus)
    if options.memory is not None:
        worker.resources.memory_bytes = parsed("--memory", options.memory, values.parse_size)


def _models(request: lease_pb2.CreateLeaseRequest, options: leaseoptions.LeaseOptions) -> None:
    if options.model:
        del request.models[:]
        request.models.extend(_model(parsed("--model", text, values.parse_model)) for text in options.model)
    if not request.models:
        raise wrong("--model", "a lease needs at least one model", "Write --model NAME=URI, or --file lease.yaml.")


def _model(model: values.Model) -> common_pb2.ModelReference:
    return common_pb2.ModelReference(
        name=model.name,
        uri=model.uri,
        framework=model.framework,
        declared_bytes=model.declared_bytes,
        config_override=leasefile.read_config("--model", pathlib.Path(model.config)) if model.config else "",
    )


def _placement(
    request: lease_pb2.CreateLeaseRequest, options: leaseoptions.LeaseOptions, worker: leaseoptions.WorkerOptions
) -> None:
    if options.pool and options.dedicated:
        raise wrong("--dedicated", "a lease has a pool or a dedicated worker, not both")
    if options.pool:
        request.pool.pool = options.pool
    if options.dedicated and not request.HasField("dedicated"):
        request.dedicated.SetInParent()
    if request.HasField("dedicated"):
        describe(request.dedicated.worker, worker)
        if options.replicas is not None:
            request.dedicated.replicas = within_32_bits("--replicas", options.replicas)
    elif worker.describes_worker or options.replicas is not None:
        remedy = "Add --dedicated, or leave --command, --image, --profile, --gpus, --cpus, --memory and --replicas out."
        raise wrong("--dedicated", "only a dedicated worker can be described", remedy)
    else:
        request.pool.SetInParent()


def _scaling(request: lease_pb2.CreateLeaseRequest, options: leaseoptions.LeaseOptions) -> None:
    if options.min_replicas is not None:
        request.autoscaling.min_replicas = within_32_bits("--min-replicas", options.min_replicas)
    if options.max_replicas is not None:
        request.autoscaling.max_replicas = within_32_bits("--max-replicas", options.max_replicas)
    if options.scale_on:
        metrics = [parsed("--scale-on", text, scaling.parse_metric) for text in options.scale_on]
        del request.autoscaling.metrics[:]
        request.autoscaling.metrics.extend(metrics)
    if options.max_replicas == 0:
        raise wrong("--max-replicas", "0 is no size", "Write 1 or more, or leave it out: the lease then does not grow.")
    if request.HasField("autoscaling") and not request.autoscaling.max_replicas:
        raise wrong("--max-replicas", "a lease that grows needs a greatest size", "Write --max-replicas NUMBER.")


def _times(request: lease_pb2.CreateLeaseRequest, options: leaseoptions.LeaseOptions) -> None:
    if options.hold is not None:
        request.times.hold.CopyFrom(duration("--hold", options.hold))
    if options.window is not None:
        request.times.activity_window.CopyFrom(duration("--window", options.window))
    if options.max_lifetime is not None:
        request.times.max_lifetime.CopyFrom(duration("--max-lifetime", options.max_lifetime))
    if options.pending_timeout is not None:
        request.times.pending_timeout.CopyFrom(duration("--pending-timeout", options.pending_timeout))
    if options.renewal is not None:
        request.times.renewal = leasefile.RENEWALS[options.renewal]


def _sharing(request: lease_pb2.CreateLeaseRequest, options: leaseoptions.LeaseOptions) -> None:
    if options.share_with:
        request.sharing.share_with[:] = options.share_with
    if options.not_with:
        request.sharing.not_with[:] = options.not_with
    if options.exclusive:
        request.sharing.exclusive = True
