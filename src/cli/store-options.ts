/** What the commands of `store` share: their arguments, and how they open a store. */

import { Store } from '../blockset/index.ts';
import { absolutePath } from './arguments.ts';
import type { CommandContext, GlobalOptions } from './command.ts';
import { type KeyOptions, storeKey } from './key-options.ts';

export interface StoreOptions extends GlobalOptions, KeyOptions {
  readonly store: string;
}

export interface SetOptions extends StoreOptions {
  readonly set: string;
}

export const STORE = { type: 'string', demandOption: true, describe: 'Directory of the store' } as const;
export const SET = {
  type: 'string',
  describe: 'Set id or unique prefix, or latest, or latest:<volume id or name>',
} as const;

/** Opens a store to look into it: nothing changes, not even what a crash left. */
export function openStore(context: CommandContext, options: StoreOptions): Promise<Store> {
  return open(context, options, true);
}

/** Opens a store to change it; what a crash left is put in order first. */
export function openForChange(context: CommandContext, options: StoreOptions): Promise<Store> {
  return open(context, options, false);
}

async function open(context: CommandContext, options: StoreOptions, readOnly: boolean): Promise<Store> {
  const path = absolutePath('The store', options.store, context.directory);
  const key = await storeKey(context, path, options);
  return await Store.open(path, { readOnly, clock: context.clock, ...key });
}
