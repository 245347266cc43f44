/** The options that lay a home out: `--home`, `--layout`, `--layout-file`. */

import { readFile, stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { LIMITS, messageOf } from '../base/index.ts';
import { type HomeLayout, layoutOf, parseLayoutFile } from '../volume/index.ts';
import { absolutePlace, several, single } from './arguments.ts';
import { UsageError } from './exit.ts';

export const LAYOUT_KINDS = ['concat', 'stripe', 'mirror'] as const;

export interface LayoutArguments {
  readonly home: string | readonly string[] | undefined;
  readonly layout: (typeof LAYOUT_KINDS)[number] | undefined;
  readonly layoutFile: string | undefined;
}

/** Where a volume's home is to be. */
export type HomeChoice =
  | { readonly kind: 'own' }
  | { readonly kind: 'plain'; readonly place: string }
  /** `from` begins messages about it. */
  | { readonly kind: 'layout'; readonly layout: HomeLayout; readonly from: string };

/** @throws {UsageError}; {VolumeError} `bad-layout`. */
export async function readHome(options: LayoutArguments, directory: string): Promise<HomeChoice> {
  const homes = several(options.home);
  const layout = single('--layout', options.layout);
  const file = single('--layout-file', options.layoutFile);
  if (homes.includes('')) throw new UsageError('--home is empty, wanted a path or a URI');
  if (file !== undefined) {
    if (homes.length > 0 || layout !== undefined)
      throw new UsageError(
        '--layout-file says where the home is, wanted neither --home nor --layout beside it',
      );
    return { kind: 'layout', layout: await readLayoutFile(file, directory), from: file };
  }
  const places = homes.map((home) => absolutePlace(home, directory));
  const [only] = places;
  if (layout === undefined && places.length > 1)
    throw new UsageError(
      `--home is given ${places.length} times, wanted --layout ${LAYOUT_KINDS.join(', ')} with it`,
    );
  if (layout === undefined) return only === undefined ? { kind: 'own' } : { kind: 'plain', place: only };
  if (only === undefined)
    throw new UsageError(`--layout ${layout} is given without --home, wanted the members`);
  if (layout !== 'concat' && places.length === 1)
    throw new UsageError(`--layout ${layout} is given with one --home, wanted at least 2`);
  return { kind: 'layout', layout: layoutOf(layout, places), from: 'the command line' };
}

async function readLayoutFile(file: string, directory: string): Promise<HomeLayout> {
  const path = resolve(directory, file);
  let text: string;
  try {
    const { size } = await stat(path);
    if (size > LIMITS.layoutFileBytesMax)
      throw new Error(`it has ${size} bytes, wanted at most ${LIMITS.layoutFileBytesMax}`);
    text = await readFile(path, 'utf8');
  } catch (error) {
    throw new UsageError(`Layout file ${file} cannot be read: ${messageOf(error)}`);
  }
  return parseLayoutFile(text, file, (place) => absolutePlace(place, directory));
}
