/**
 * Goal: calls that stop the loop move to the thread pool, soon and only then, and come back once they are fast,
 * without swinging to and fro. Method: one pace under a clock that stands still, and calls whose length the
 * test says; every arrow of the diagram in `pace.ts`, then random histories against the rule that bounds how
 * long the loop may stand still.
 */

import fc from 'fast-check';
import t from 'tap';
import { LIMITS, ManualClock, MIB } from '../base/index.ts';
import { Pace } from './pace.ts';

const { paceBlockedMsMax, paceFastCountMin, paceRestMsMax, paceRestMsMin, paceSlowCallMs, paceWindowMs } =
  LIMITS;
/** Exact in binary, so that sums of it are. */
const FAST_MS = 1 / 64;

class Setting {
  readonly clock = new ManualClock(0);
  delayedMs = 0;
  readonly pace = new Pace({ clock: this.clock, runDelayMs: () => this.delayedMs });

  /** One call, made where the pace says. @returns whether it was made at once. */
  call(tookMs: number, lengthBytes = 0): boolean {
    const isAtOnce = this.pace.mayBlock();
    const beganMs = isAtOnce ? this.pace.began() : this.pace.pooledBegan();
    this.clock.advance(tookMs);
    if (isAtOnce) this.pace.ended(beganMs, lengthBytes);
    else this.pace.pooledEnded(beganMs, lengthBytes);
    return isAtOnce;
  }

  calls(count: number, tookMs: number): void {
    for (let index = 0; index < count; index += 1) this.call(tookMs);
  }

  /** Rests to the end and makes a row of fast calls on the pool: the next call is a probe. */
  rest(restMs: number): void {
    this.clock.advance(restMs);
    this.calls(paceFastCountMin, FAST_MS);
  }

  moveAway(): void {
    this.call(2 * paceBlockedMsMax);
  }
}

t.test('any number of fast calls stays', async (t) => {
  const setting = new Setting();
  setting.calls(100_000, FAST_MS);
  t.notOk(setting.pace.isPooled);
});

t.test('one very slow call moves them, and so do several slow ones in one window', async (t) => {
  const one = new Setting();
  one.call(paceBlockedMsMax);
  t.ok(one.pace.isPooled);
  t.notOk(one.call(FAST_MS), 'the next one runs on the pool');
  const several = new Setting();
  several.calls(4, paceBlockedMsMax / 5);
  t.notOk(several.pace.isPooled);
  several.calls(1, paceBlockedMsMax / 5);
  t.ok(several.pace.isPooled);
});

t.test('slow calls now and then stay', async (t) => {
  const setting = new Setting();
  for (let index = 0; index < 1_000; index += 1) {
    setting.call(paceBlockedMsMax / 2);
    setting.clock.advance(paceWindowMs);
  }
  t.notOk(setting.pace.isPooled);
});

t.test('time in which another process had the processor does not count', async (t) => {
  const setting = new Setting();
  setting.call(FAST_MS);
  for (let index = 0; index < 100; index += 1) {
    setting.delayedMs += 4;
    setting.call(4);
  }
  t.notOk(setting.pace.isPooled);
  setting.clock.advance(paceWindowMs);
  setting.call(FAST_MS);
  setting.call(paceBlockedMsMax);
  t.ok(setting.pace.isPooled, 'what was taken off one window is not taken off the next');
});

t.test('copying many bytes is no waiting, on either side', async (t) => {
  const setting = new Setting();
  const copyMs = LIMITS.paceCopyMsPerMib;
  for (let index = 0; index < 1_000; index += 1) setting.call(copyMs, MIB);
  t.notOk(setting.pace.isPooled);
  for (let index = 0; index < paceBlockedMsMax; index += 1) setting.call(copyMs + 1, MIB);
  t.ok(setting.pace.isPooled);
  for (let index = 0; index < paceFastCountMin; index += 1) {
    setting.call(LIMITS.pacePooledSlowMs + copyMs / 2, MIB);
  }
  setting.clock.advance(paceRestMsMin);
  t.ok(setting.call(copyMs, MIB), 'the probe');
  t.notOk(setting.pace.isPooled);
});

t.test('calls come back after a rest, when those on the pool and one probe were fast', async (t) => {
  const setting = new Setting();
  setting.moveAway();
  setting.calls(10 * paceFastCountMin, 0);
  t.notOk(setting.pace.mayBlock(), 'not before the rest is over');
  setting.call(LIMITS.pacePooledSlowMs);
  setting.clock.advance(paceRestMsMin);
  setting.calls(paceFastCountMin - 1, FAST_MS);
  t.notOk(setting.pace.mayBlock(), 'not before a whole row was fast');
  setting.call(FAST_MS);
  t.ok(setting.call(FAST_MS), 'the probe');
  t.notOk(setting.pace.isPooled);
  setting.calls(1_000, FAST_MS);
  t.notOk(setting.pace.isPooled);
});

t.test('a slow probe doubles the rest, up to the limit', async (t) => {
  const setting = new Setting();
  setting.moveAway();
  let restMs: number = paceRestMsMin;
  for (let round = 0; round < 12; round += 1) {
    setting.rest(restMs - paceFastCountMin * FAST_MS - FAST_MS);
    t.notOk(setting.pace.mayBlock(), `round ${round}: not before ${restMs} ms`);
    setting.clock.advance(FAST_MS);
    t.ok(setting.call(1), 'one probe');
    t.ok(setting.pace.isPooled);
    t.notOk(setting.pace.mayBlock(), 'and only one');
    restMs = Math.min(restMs * 2, paceRestMsMax);
  }
  t.equal(restMs, paceRestMsMax);
});

t.test('moving away soon after coming back doubles the rest; after a good time it begins anew', async (t) => {
  const setting = new Setting();
  setting.moveAway();
  setting.rest(paceRestMsMin);
  setting.call(FAST_MS);
  t.notOk(setting.pace.isPooled);
  setting.moveAway();
  setting.rest(paceRestMsMin);
  t.notOk(setting.pace.mayBlock(), 'the first rest again would be too short');
  setting.clock.advance(paceRestMsMin);
  setting.call(FAST_MS);
  t.notOk(setting.pace.isPooled);
  setting.clock.advance(10 * paceRestMsMin);
  setting.moveAway();
  setting.rest(paceRestMsMin);
  t.ok(setting.pace.mayBlock(), 'the first rest is enough');
});

t.test('property: the loop stands still for a bounded share of its time, whatever calls take', async (t) => {
  const seed = Date.now() % 2 ** 31;
  t.comment(`seed ${seed}`);
  const slow = fc.oneof(fc.constant(FAST_MS), fc.double({ min: 0, max: 20, noNaN: true }));
  const property = fc.property(fc.array(slow, { minLength: 200, maxLength: 400 }), (lengths) => {
    const setting = new Setting();
    const began = setting.clock.monotonicMs();
    let windowBegan = began;
    let blockedMs = 0;
    let longestMs = 0;
    for (const tookMs of lengths) {
      if (setting.clock.monotonicMs() - windowBegan >= paceWindowMs) {
        windowBegan = setting.clock.monotonicMs();
        [blockedMs, longestMs] = [0, 0];
      }
      if (!setting.call(tookMs) || tookMs < paceSlowCallMs) continue;
      blockedMs += tookMs;
      longestMs = Math.max(longestMs, tookMs);
      // Any span of one window overlaps two of the pace's own; the call that is one too many is not known before.
      if (blockedMs > 2 * (paceBlockedMsMax + longestMs)) return false;
    }
    return true;
  });
  fc.assert(property, { seed, numRuns: 100 });
});
