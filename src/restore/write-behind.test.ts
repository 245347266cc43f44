/**
 * Goal: what was written is written back window by window, never one that is still written to, and what the disk refuses
 * stops the restore with the name of the target.
 *
 * Method: a device that records what is begun and ended; windows are named by their numbers.
 */

import t from 'tap';
import { LIMITS } from '../base/index.ts';
import { type BlockDevice, MemoryDevice } from '../device/index.ts';
import type { RestoreTarget } from './planner.ts';
import { TargetsWriteBehind } from './write-behind.ts';

const WINDOW = LIMITS.writeBehindBytes;

function target(calls: string[], fail: () => void = () => undefined): RestoreTarget {
  const call =
    (name: string) =>
    (offsetBytes: number, lengthBytes: number): void => {
      fail();
      calls.push(`${name} ${offsetBytes / WINDOW}${lengthBytes === WINDOW ? '' : ` cut to ${lengthBytes}`}`);
    };
  const memory = new MemoryDevice({ sizeBytes: 20 * WINDOW + 512 });
  const device: BlockDevice = Object.assign(memory, {
    beginWriteBack: call('begin'),
    endWriteBack: call('end'),
  });
  return { name: 'disk', device, knownZero: false };
}

t.test('Windows go one by one, behind those that are written to', async (t) => {
  const calls: string[] = [];
  const disk = target(calls);
  const behind = new TargetsWriteBehind();
  for (let at = 0; at < 8 * WINDOW; at += WINDOW / 2) behind.note(disk, at, WINDOW / 2);
  t.same(calls, ['begin 0', 'begin 1', 'begin 2', 'end 0', 'begin 3', 'end 1']);
  calls.length = 0;
  // Two streams at different places, as two sets of a chain give them.
  for (let step = 0; step < 3; step += 1) {
    behind.note(disk, (10 + step) * WINDOW, 512);
    behind.note(disk, 5 * WINDOW, 512);
  }
  t.notOk(calls.includes('begin 5'), 'a window that is still written to stays');
});

t.test('A range over the border of two windows, and the short one at the end', async (t) => {
  const calls: string[] = [];
  const disk = target(calls);
  const behind = new TargetsWriteBehind();
  behind.note(disk, 20 * WINDOW - 512, 1024);
  for (const window of [0, 1, 2, 3, 4]) behind.note(disk, window * WINDOW, 512);
  t.same(calls, ['begin 19', 'begin 20 cut to 512', 'begin 0', 'end 19'].slice(0, calls.length));
  t.ok(calls.includes('begin 20 cut to 512'));
});

t.test('What the disk refuses names the target', async (t) => {
  const disk = target([], () => {
    throw new Error('the disk is gone');
  });
  const behind = new TargetsWriteBehind();
  t.throws(
    () => {
      for (let window = 0; window < 8; window += 1) behind.note(disk, window * WINDOW, 512);
    },
    { message: 'Writing back target disk (memory) failed: the disk is gone' },
  );
});

t.test('A device that cannot is left alone', async () => {
  const device = new MemoryDevice({ sizeBytes: 20 * WINDOW });
  const behind = new TargetsWriteBehind();
  for (let window = 0; window < 20; window += 1)
    behind.note({ name: 'disk', device, knownZero: false }, window * WINDOW, 512);
});
