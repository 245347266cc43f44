/**
 * `backup --store <medium>`: where media stand in the place of a store. What is a directory is a store; anything
 * else that is there is a medium. A path where nothing is would be either, and a store's path that was mistyped must
 * not become a file: it is a medium where it ends in `.tar`, has `{n}` in it, or an option of media is given.
 */

import { statSync } from 'node:fs';
import type { Argv } from 'yargs';
import type { MediumTarget } from '../backup/index.ts';
import type { BackupParams } from '../daemon/index.ts';
import { isLabel } from '../media/index.ts';
import { readSize, single } from './arguments.ts';
import { UsageError } from './exit.ts';
import { LOAD, NUMBER } from './media-places.ts';

export interface MediumOptions {
  readonly label: string | undefined;
  readonly mediumSize: string | undefined;
  readonly load: string | undefined;
  readonly overwrite: boolean | undefined;
}

/** The name of media where none is given. */
export const LABEL_DEFAULT = 'cowbell';

export const MEDIUM_SIZE = {
  type: 'string',
  requiresArg: true,
  describe: 'What one medium takes; without it, until the medium says that it is full',
} as const;

/** What media are named and take. @throws {UsageError} */
export function readMediumForm(options: Pick<MediumOptions, 'label' | 'mediumSize'>): {
  readonly label: string;
  readonly sizeBytes: number | undefined;
} {
  const label = single('--label', options.label) ?? LABEL_DEFAULT;
  if (!isLabel(label)) {
    throw new UsageError(
      `--label is '${label}', wanted up to 32 letters, digits, dots, hyphens and underscores`,
    );
  }
  const size = single('--medium-size', options.mediumSize);
  return { label, sizeBytes: size === undefined ? undefined : readSize('--medium-size', size) };
}

export function addMediumOptions<T>(command: Argv<T>) {
  return command
    .option('label', {
      type: 'string',
      requiresArg: true,
      describe: `Name of the media where the store is a medium, ${LABEL_DEFAULT} unless told`,
    })
    .option('medium-size', MEDIUM_SIZE)
    .option('load', LOAD)
    .option('overwrite', { type: 'boolean', describe: 'Replace files that are to become media' });
}

/** The media that are meant; undefined where a store is. @param path absolute. @throws {UsageError} */
export function readMedium(path: string, options: MediumOptions): { readonly medium?: MediumTarget } {
  const named = [options.label, options.mediumSize, options.load, options.overwrite];
  const isNamed = named.some((option) => option !== undefined);
  const kind = kindOf(path);
  if (kind === 'directory') {
    if (!isNamed) return {};
    throw new UsageError(
      `${path} is a directory, wanted a file, a pipe or a device where --label, --medium-size, --load or --overwrite is given`,
    );
  }
  if (kind === 'nothing' && !isNamed && !path.endsWith('.tar') && !path.includes(NUMBER)) return {};
  const { label, sizeBytes } = readMediumForm(options);
  const load = single('--load', options.load);
  return {
    medium: {
      place: path,
      label,
      ...(sizeBytes === undefined ? {} : { sizeBytes }),
      ...(load === undefined ? {} : { load }),
      ...(options.overwrite === true ? { overwrite: true } : {}),
    },
  };
}

/** Refuses, by name, what takes a store. @throws {UsageError} */
export function refuseWithMedium(
  { place }: MediumTarget,
  params: Pick<BackupParams, 'level' | 'style'>,
  wanted: { readonly hasKey: boolean; readonly isDryRun: boolean; readonly volumeCount: number },
): void {
  const { level, style } = params;
  const refuse = (what: string, instead: string): UsageError =>
    new UsageError(`${what} takes a store, and ${place} is a medium, wanted ${instead}`);
  if (level !== 'auto' && level !== 'full') throw refuse(`Level ${level}`, 'level full or auto');
  if (style.lanes !== undefined) throw refuse('--lane', 'none');
  if (wanted.hasKey) throw refuse('A key', 'an encrypted store and an export from it');
  if (wanted.isDryRun) throw refuse('--dry-run', 'none');
  if (wanted.volumeCount > 1) throw refuse('More than one volume', 'one');
}

function kindOf(path: string): 'directory' | 'other' | 'nothing' {
  const found = statSync(path, { throwIfNoEntry: false });
  if (found === undefined) return 'nothing';
  return found.isDirectory() ? 'directory' : 'other';
}
