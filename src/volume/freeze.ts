/**
 * A freeze: one instant of one or several volumes (DESIGN section 4, "The gate and the freeze").
 *
 *     prepare all    flush the homes, make what the next epochs need; the gates are open
 *     close all      writes wait outside; those inside finish
 *     while closed   what some points need made at the instant itself; most need nothing
 *     fix all        nothing is awaited: the same instant for all volumes
 *     reopen all
 *     begin all      what the points are for
 *
 * All or none: where one part cannot, every gate opens again and nothing was fixed. The gates of all volumes are
 * closed before the first is fixed, so that a write which a client sent to one volume after another volume had
 * acknowledged its last one is never there without that last one.
 */

import { allFinished, type MaybePromise, type Slots, systemClock } from '../base/index.ts';

/** What a point is fixed for. */
export interface PointUse<T> {
  /** Asked before the part waits for its turn, and again when it has it. @throws where there is to be no freeze. */
  admit?(): void;
  /** Everything that takes time. Writes go on. */
  prepare(): MaybePromise<void>;
  /** What takes a moment, with every gate closed and empty; all of a freeze's finish before the first is fixed. */
  whileClosed?(): Promise<void>;
  /** Called with every gate closed and empty. Neither waits nor throws. */
  fix(): void;
  /** Called right after the gates were opened again. Does not throw. */
  begin(freezeMs: number): T;
  /** The freeze failed: gives up what `prepare` made. Called also where `prepare` failed or did not begin. */
  abandon(): Promise<void>;
}

/** One volume's part in a freeze. */
export interface FreezePart<T> extends PointUse<T> {
  /** Orders the parts of a freeze, so that two freezes of the same volumes cannot wait for each other. */
  readonly key: string;
  /** One freeze at a time for each volume. */
  readonly turn: Slots;
  /** @throws {VolumeError} `freeze-timeout`; the gate is then open. */
  closeGate(): Promise<void>;
  admit(): void;
  /** Asked of all parts before the first is fixed. @throws where it may not be. */
  assertMayFix(): void;
  reopenGate(): void;
}

/** @returns what the parts began, in their order. */
export async function freezeTogether<T>(parts: readonly FreezePart<T>[]): Promise<readonly T[]> {
  await orAbandon(parts, async () => admitAll(parts));
  const inOrder = parts.toSorted((a, b) => (a.key < b.key ? -1 : 1));
  const freeze = inOrder.reduceRight(
    (next: () => Promise<readonly T[]>, { turn }) =>
      () =>
        turn.run(next),
    () => freezeInTurn(parts),
  );
  return freeze();
}

async function freezeInTurn<T>(parts: readonly FreezePart<T>[]): Promise<readonly T[]> {
  const freezeMs = await orAbandon(parts, async () => {
    admitAll(parts);
    await allFinished(parts.map(async (part) => part.prepare()));
    return fixAll(parts);
  });
  return parts.map((part) => part.begin(freezeMs));
}

function admitAll(parts: readonly FreezePart<unknown>[]): void {
  for (const part of parts) part.admit();
}

/** Where the body fails, what the parts have made by then is given up. */
async function orAbandon<R>(parts: readonly FreezePart<unknown>[], body: () => Promise<R>): Promise<R> {
  try {
    return await body();
  } catch (error) {
    await Promise.allSettled(parts.map((part) => part.abandon()));
    throw error;
  }
}

/** @returns for how long writes were held up, in milliseconds. */
async function fixAll(parts: readonly FreezePart<unknown>[]): Promise<number> {
  const closedAtMs = systemClock.monotonicMs();
  const closed: FreezePart<unknown>[] = [];
  try {
    await allFinished(parts.map((part) => part.closeGate().then(() => closed.push(part))));
    for (const part of parts) part.assertMayFix();
    if (parts.some((part) => part.whileClosed !== undefined)) {
      await allFinished(parts.map(async (part) => part.whileClosed?.()));
      for (const part of parts) part.assertMayFix();
    }
    for (const part of parts) part.fix();
  } finally {
    for (const part of closed) part.reopenGate();
  }
  return systemClock.monotonicMs() - closedAtMs;
}
