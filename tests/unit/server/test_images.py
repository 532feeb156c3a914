"""The list of images: what is on it, what it refuses."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.support import middle
from tms_server.leases import validate
from tms_server.model import errors, ids, image, lease, pool, resources


async def with_image(world: middle.World, name: str) -> None:
    await world.create(placement=lease.Dedicated(resources.WorkerSpec(image=name)))


async def test_only_the_images_of_the_settings_are_allowed_at_first(led: middle.World) -> None:
    await with_image(led, "here/worker:1")
    with pytest.raises(errors.PermissionDenied, match=r"dedicated\.worker\.image: .*tmsctl allowlist add") as refused:
        await with_image(led, "there/worker:1")
    assert "there/worker:1" in str(refused.value)
    spec = pool.PoolSpec(worker=resources.WorkerSpec(image="there/worker:1"))
    with pytest.raises(errors.PermissionDenied, match=r"spec\.worker\.image"):
        await led.pools.create(middle.CALLER, ids.DEFAULT_NAMESPACE, ids.PoolName("gold"), spec)
    with pytest.raises(errors.PermissionDenied, match=r"spec\.worker\.image"):
        await led.pools.update(middle.CALLER, ids.DEFAULT_NAMESPACE, ids.DEFAULT_POOL, spec)


async def test_a_rule_allows_until_it_is_taken_away(led: middle.World) -> None:
    first = await led.images.allow(middle.CALLER, "there/*")
    led.advance(seconds=5)
    assert await led.images.allow(middle.CALLER, "there/*") == first
    assert (first.actor, first.from_settings) == (middle.CALLER.name, False)
    await with_image(led, "there/worker:1")
    assert [each.pattern for each in await led.images.list(middle.CALLER)] == ["here/worker:1", "there/*"]
    await led.images.forbid(middle.CALLER, "there/*")
    with pytest.raises(errors.PermissionDenied):
        await with_image(led, "there/worker:1")
    with pytest.raises(errors.NotFound):
        await led.images.forbid(middle.CALLER, "there/*")


async def test_a_rule_of_the_settings_is_removed_there(led: middle.World) -> None:
    assert (await led.images.allow(middle.CALLER, "here/worker:1")).from_settings
    with pytest.raises(errors.FailedPrecondition):
        await led.images.forbid(middle.CALLER, "here/worker:1")


@pytest.mark.parametrize("pattern", ["", "a b", "a*b", "**", "-x", "x" * 513, "a\nb"])
async def test_what_is_no_rule_is_refused(led: middle.World, pattern: str) -> None:
    with pytest.raises(errors.InvalidField, match="pattern"):
        await led.images.allow(middle.CALLER, pattern)


@hypothesis.given(st.text("ab/:*", min_size=1), st.text("ab/:"))
def test_a_rule_matches_its_own_image_or_what_begins_with_it(pattern: str, rest: str) -> None:
    try:
        validate.image_pattern("pattern", pattern)
    except errors.InvalidField:
        return
    stem = pattern.removesuffix("*")
    assert image.matches(pattern, stem + rest) == (pattern.endswith("*") or not rest)
    assert not image.matches(pattern, "c" + stem) or pattern == "*"
