/** What `cowbell restore` says to people: its plan, what it did, and what is missing. */

import { CorruptionError, formatSize } from '../base/index.ts';
import type { PlanSummary, RestoreResult, SourceRange } from '../restore/index.ts';

/** What is restored. */
export interface Restoring {
  readonly set: string;
  readonly volume: string;
  readonly targets: readonly string[];
}

/** The plan of a dry run. */
export function planLines({ set, volume }: Restoring, plan: PlanSummary): string[] {
  const lines = [`Set ${set} of ${volume} would be restored to ${counted(plan.targets.length, 'target')}`];
  for (const target of plan.targets) {
    const { name, sizeBytes, isNew, bytesWanted, bytesToWrite, bytesToZero, bytesToSkip } = target;
    const size = isNew ? `a new file of ${formatSize(sizeBytes)}` : `has ${formatSize(sizeBytes)}`;
    lines.push(
      `  ${name}: ${size}, needs ${formatSize(bytesWanted)}; ${formatSize(bytesToWrite)} to write, ${formatSize(bytesToZero)} to zero, ${formatSize(bytesToSkip)} zero already`,
    );
  }
  const { tracks, tracksBefore, frames, sets } = plan;
  const before = tracksBefore === 0 ? '' : `, besides ${tracksBefore} that are written already`;
  const from =
    frames === null ? '' : ` in ${counted(frames, 'frame')} of ${counted(sets?.length ?? 0, 'set')}`;
  lines.push(`  ${counted(tracks, 'track')} to read${from}${before}`, ...leftOutLines(plan.bytesLeftOut));
  lines.push(...missingLines(plan.missing));
  return lines;
}

/** What a restore has done. */
export function restoredLines(
  done: Restoring &
    RestoreResult & {
      readonly bytesLeftOut: number;
      readonly verified: boolean;
      readonly durationMs: number;
    },
): string[] {
  const { set, volume, targets, tracks, tracksBefore, bytesWritten, verified, durationMs } = done;
  const before = tracksBefore === 0 ? '' : ` and ${tracksBefore} written before`;
  const compared = verified ? ', read back and compared' : '';
  return [
    `Restored set ${set} of ${volume} to ${targets.join(', ')}: ${tracks} tracks${before}, ${formatSize(bytesWritten)} written${compared}, ${(durationMs / 1000).toFixed(1)} s`,
    ...leftOutLines(done.bytesLeftOut),
    ...done.findings.map((finding) => `  ${finding}`),
    ...missingLines(done.missing),
  ];
}

/** The end of a salvage that has not found everything. */
export function missingError({ set }: Restoring, missing: readonly SourceRange[]): CorruptionError {
  const bytes = missing.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
  const ranges = missing.length === 1 ? 'one range' : `${missing.length} ranges`;
  return new CorruptionError(
    `Set ${set} is damaged, ${bytes} bytes in ${ranges} of the volume are missing and were left alone on the targets`,
    { where: set },
  );
}

function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`;
}

function leftOutLines(bytes: number): string[] {
  if (bytes === 0) return [];
  return [
    `  The last ${formatSize(bytes)} of the volume are zeroes and were left out: the targets end before`,
  ];
}

function missingLines(missing: readonly SourceRange[]): string[] {
  return missing.map(({ offsetBytes, lengthBytes }) => {
    return `  missing: bytes ${offsetBytes} to ${offsetBytes + lengthBytes - 1} of the volume`;
  });
}
