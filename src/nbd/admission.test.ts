/**
 * Goal: what a connection holds stays within its share, replies not taken included, and nothing starves.
 * Method: by hand, with small limits; then a random sequence against plain sums.
 */

import fc from 'fast-check';
import t from 'tap';
import { Admission } from './admission.ts';
import { nbdLimits } from './limits.ts';

const LIMITS = nbdLimits({
  inFlightBytesMax: 100,
  inFlightCountMax: 3,
  waitingBytesMax: 50,
  waitingCountMax: 2,
});

t.test('requests and replies not taken share one limit', async (t) => {
  const admission = new Admission(LIMITS);
  admission.begin(60);
  t.ok(admission.hasRoomFor(40, 0));
  t.notOk(admission.hasRoomFor(41, 0));
  t.notOk(admission.hasRoomFor(40, 1));
  admission.end(60);
  t.notOk(admission.hasRoomFor(100, 1));
});

t.test('a connection with nothing under way may run one request of any size', async (t) => {
  const admission = new Admission(LIMITS, { shareBytes: 10 });
  t.ok(admission.hasRoomFor(1_000, 0));
  t.notOk(admission.hasRoomFor(1_000, 1), 'but not before its replies are taken');
  admission.begin(1_000);
  t.notOk(admission.hasRoomFor(0, 0));
});

t.test('the share counts where it is smaller than the limit, and may change', async (t) => {
  const memory = { shareBytes: 30 };
  const admission = new Admission(LIMITS, memory);
  admission.begin(20);
  t.notOk(admission.hasRoomFor(11, 0));
  memory.shareBytes = 31;
  t.ok(admission.hasRoomFor(11, 0));
});

t.test('what waits is counted apart, and bounded too', async (t) => {
  const admission = new Admission(LIMITS);
  admission.begin(49);
  admission.suspend(49);
  t.ok(admission.hasRoomFor(100, 0), 'requests behind it go on');
  admission.begin(1);
  admission.suspend(1);
  t.notOk(admission.hasRoomFor(1, 0), 'as much waits as may');
  admission.resume(49);
  t.ok(admission.hasRoomFor(1, 0));
});

t.test('the number of requests is bounded', async (t) => {
  const admission = new Admission(LIMITS);
  for (let count = 0; count < 3; count += 1) {
    t.ok(admission.hasRoomFor(1, 0));
    admission.begin(1);
  }
  t.notOk(admission.hasRoomFor(1, 0));
});

t.test('no sequence of admitted requests holds more than the share and one request', async () => {
  const step = fc.record({ heldBytes: fc.nat(60), ends: fc.boolean() });
  fc.assert(
    fc.property(fc.array(step), fc.integer({ min: 1, max: 80 }), (steps, shareBytes) => {
      const admission = new Admission(LIMITS, { shareBytes });
      const running: number[] = [];
      for (const { heldBytes, ends } of steps) {
        if (ends) {
          const ended = running.shift();
          if (ended !== undefined) admission.end(ended);
        } else if (admission.hasRoomFor(heldBytes, 0)) {
          admission.begin(heldBytes);
          running.push(heldBytes);
        }
        const sum = running.reduce((total, bytes) => total + bytes, 0);
        if (sum > shareBytes && running.length > 1 && sum - (running[0] ?? 0) > 0) return false;
      }
      return true;
    }),
  );
});
