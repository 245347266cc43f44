/**
 * Has what a restore writes written back while it goes on, and taken out of the page cache:
 *
 *     windows being written to, a few | being written back, one or two | written back and dropped
 *
 * Otherwise the disk gets all of it at the final flush, and what others read is pushed out of memory by what nobody reads
 * yet. Where memory is taken from a host by its first touch, as in virtual machines, using the same pages again saves
 * more than that.
 *
 * Nothing is durable by that; the flush still decides.
 */

import { LIMITS } from '../base/index.ts';
import type { RestoreTarget } from './planner.ts';
import { named } from './target-calls.ts';

const WINDOW_BYTES = LIMITS.writeBehindBytes;
/** Windows that are left alone because more is still written to them: lanes and older sets take turns. */
const OPEN_COUNT_MAX = 4;
/** Windows on their way to the disk. */
const BEGUN_COUNT_MAX = 2;

/** Of one target. */
class Windows {
  readonly open = new Set<number>();
  readonly begun: number[] = [];
}

export class TargetsWriteBehind {
  readonly #windows = new Map<RestoreTarget, Windows>();

  /**
   * The range was written. May wait for the disk.
   *
   * @throws {TargetFailure} where the disk did not take what was written before.
   */
  note(target: RestoreTarget, offsetBytes: number, lengthBytes: number): void {
    const { device } = target;
    if (device.beginWriteBack === undefined || device.endWriteBack === undefined) return;
    const windows = this.#windowsOf(target);
    const last = Math.floor((offsetBytes + lengthBytes - 1) / WINDOW_BYTES);
    for (let window = Math.floor(offsetBytes / WINDOW_BYTES); window <= last; window += 1) {
      // The one that was written to last is the last one to go.
      windows.open.delete(window);
      windows.open.add(window);
    }
    for (const window of windows.open) {
      if (windows.open.size <= OPEN_COUNT_MAX) break;
      windows.open.delete(window);
      windows.begun.push(window);
      onWindow(target, window, (at, length) => device.beginWriteBack?.(at, length));
    }
    while (windows.begun.length > BEGUN_COUNT_MAX) {
      const window = windows.begun.shift() ?? 0;
      onWindow(target, window, (at, length) => device.endWriteBack?.(at, length));
    }
  }

  #windowsOf(target: RestoreTarget): Windows {
    const found = this.#windows.get(target) ?? new Windows();
    this.#windows.set(target, found);
    return found;
  }
}

function onWindow(
  target: RestoreTarget,
  window: number,
  call: (offsetBytes: number, lengthBytes: number) => void,
): void {
  const offsetBytes = window * WINDOW_BYTES;
  const lengthBytes = Math.min(WINDOW_BYTES, target.device.sizeBytes - offsetBytes);
  void named(target, 'Writing back', () => call(offsetBytes, lengthBytes));
}
