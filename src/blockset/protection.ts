/**
 * Which sets must not be removed, and until when. The store keeps it beside the sets, since a complete set never
 * changes and the catalog may be made anew.
 */

import { CorruptionError } from '../base/index.ts';
import { membersOf, readStateFile } from './state-file.ts';

/** In force until that time, in milliseconds since the Unix epoch; null is for ever. */
export interface Protection {
  readonly untilMs: number | null;
}

export type Protections = ReadonlyMap<string, Protection>;

/**
 * All records, by set id, those that have run out too.
 *
 * @throws {CorruptionError} where the file is damaged: nothing may be removed then.
 */
export function readProtections(path: string): Map<string, Protection> {
  const protections = new Map<string, Protection>();
  for (const [id, record] of membersOf(membersOf(readStateFile(path)).get('protected'))) {
    const untilMs = membersOf(record).get('untilMs');
    if (untilMs !== null && typeof untilMs !== 'number') {
      throw new CorruptionError(`File ${path} is damaged: it does not say until when ${id} is protected`, {
        where: path,
      });
    }
    protections.set(id, { untilMs });
  }
  return protections;
}

/** What `writeStateFile` is to be given. */
export function encodeProtections(protections: Protections): unknown {
  return { cowbellProtected: 0, protected: Object.fromEntries(protections) };
}

/** The set's protection where it is in force. */
export function protectionOf(protections: Protections, id: string, nowMs: number): Protection | undefined {
  const found = protections.get(id);
  return found === undefined || (found.untilMs !== null && found.untilMs <= nowMs) ? undefined : found;
}
