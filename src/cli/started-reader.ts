/**
 * The process that bin/cowbell.cjs has started to read a store, while this one was still loading.
 */

import { ChildProcess } from 'node:child_process';

const PLACE = Symbol.for('cowbell.reader');

/** It, once; undefined where there is none, or where it has ended already. */
export function takeStartedReader(): ChildProcess | undefined {
  const started: unknown = Reflect.get(globalThis, PLACE);
  Reflect.deleteProperty(globalThis, PLACE);
  return started instanceof ChildProcess && started.connected ? started : undefined;
}
